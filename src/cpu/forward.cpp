// SPDX-License-Identifier: Apache-2.0
// The forward pass on the CPU (FlashAttention-2, Dao 2023, arXiv 2307.08691, algorithm 1): keys
// and values are packed once per step and shared by all query tiles and heads of a group; each
// task owns one (batch row, head, query tile), so no result depends on how tasks are spread.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

#include "counts.h"
#include "cpu/cpu.h"
#include "cpu/tickets.h"
#include "dtype.h"
#include "merge.h"
#include "workspace.h"

namespace ringattn::cpu {
namespace {

/// Where packed keys and values lie, in bytes, and how large their tiles are, in floats. In an
/// owner's shared block or in the workspace: both are the same for every rank.
struct PackedBlock {
  std::size_t keys = 0;    // [B, G, key tiles] of [D, stride of N]
  std::size_t values = 0;  // [B, G, key tiles] of [N, stride of Dv]
  std::size_t finite = 0;  // [B, G, key tiles] bytes: all values are finite
  std::size_t bytes = 0;
  std::int64_t key_size = 0;
  std::int64_t value_size = 0;

  explicit PackedBlock(const Plan& plan);

  template <class Byte>
  auto* key_tile(Byte* at, std::int64_t n) const {
    return floats(at + keys) + n * key_size;
  }
  template <class Byte>
  auto* value_tile(Byte* at, std::int64_t n) const {
    return floats(at + values) + n * value_size;
  }

 private:
  static float* floats(std::byte* at) { return reinterpret_cast<float*>(at); }
  static const float* floats(const std::byte* at) { return reinterpret_cast<const float*>(at); }
};

/// The pieces of StepContext::state and StepContext::workspace.
struct Pieces {
  float* acc = nullptr;  // state, [B, H, Sq, padded Dv]; null in a ring of one
  float* max = nullptr;  // state, [B, H, Sq]
  float* sum = nullptr;  // state, [B, H, Sq]
  std::byte* packed;     // as PackedBlock; none if the block's owner shares its own
  std::byte* scratch;
  std::size_t scratch_bytes;
};

/// Query tiles that one task takes past each key tile: keys and values come from far away once for
/// all of them.
constexpr std::int64_t kUnits = 4;

/// What a query tile keeps while key tiles pass.
struct UnitScratch {
  float* query;  // [M, stride of D]
  float* acc;    // [M, padded Dv]
  float* max;    // [M]
  float* sum;
};

/// What one thread works in.
struct Scratch {
  UnitScratch units[kUnits];
  float* s;       // [M, stride of N]
  float* factor;  // [M]
};

std::int64_t key_tiles(const Plan& plan) {
  std::int64_t most = 0;
  for (int r = 0; r < plan.world(); ++r) {
    most =
        std::max(most, Tiling{plan.key_rows(r), plan.tiles(Pass::kForward).keys, nullptr}.count());
  }
  return most;
}

PackedBlock::PackedBlock(const Plan& plan) {
  const Problem& p = plan.problem();
  const Operands o(plan);
  const std::int64_t tile = plan.tiles(Pass::kForward).keys;
  const std::int64_t tiles = p.batch * p.kv_heads * key_tiles(plan);
  key_size = o.words(p.head_dim) * row_stride(tile);
  value_size = o.words(tile) * row_stride(p.value_dim);
  Carver carver;
  carver.take_array<float>(tiles * key_size);
  values = carver.used();
  carver.take_array<float>(tiles * value_size);
  finite = carver.used();
  carver.take_array<std::uint8_t>(tiles);
  bytes = carver.used();
}

Scratch carve_scratch(const Plan& plan, Carver& carver) {
  const TileShape tile = plan.tiles(Pass::kForward);
  const Problem& p = plan.problem();
  const std::int64_t query_row = row_stride(Operands(plan).words(p.head_dim));
  Scratch s{};
  for (UnitScratch& unit : s.units) {
    unit.query = carver.take_array<float>(tile.queries * query_row);
    unit.acc = carver.take_array<float>(tile.queries * padded(p.value_dim));
    unit.max = carver.take_array<float>(tile.queries);
    unit.sum = carver.take_array<float>(tile.queries);
  }
  s.s = carver.take_array<float>(tile.queries * row_stride(tile.keys));
  s.factor = carver.take_array<float>(tile.queries);
  return s;
}

/// Rows of the state; a ring of one has a single step and needs none.
std::int64_t state_rows(const Plan& plan) {
  const Problem& p = plan.problem();
  return plan.world() == 1 ? 0 : p.batch * p.query_heads * plan.query_rows(plan.rank()).size();
}

Pieces carve(const Plan& plan, Carver& carver) {
  Pieces w{};
  w.packed = carver.take(plan.shares_blocks() ? 0 : PackedBlock(plan).bytes).data();
  Carver one;
  carve_scratch(plan, one);
  w.scratch_bytes = one.used();
  w.scratch = carver.take(w.scratch_bytes * static_cast<std::size_t>(threads(plan))).data();
  return w;
}

/// Packs keys and values of tile j of a plane, a (batch row, kv head), as tile n.
void pack_tile(const StepContext& step, std::byte* to, const PackedBlock& block,
               const Operands& operands, std::int64_t plane, std::int64_t j, std::int64_t n) {
  const Problem& p = step.plan.problem();
  const Tiling& tiles = step.schedule.keys;
  const Tile tile = tiles[j];
  const Format from = operands.format;
  const auto at = [&](const ConstTensorView& v) {
    return static_cast<const std::byte*>(v.data) +
           offset(v, plane / p.kv_heads, tile.row, plane % p.kv_heads) * size_of(v.dtype);
  };
  operands.right_transposed({false, from, at(step.key), step.key.stride(1), tile.rows, p.head_dim,
                             block.key_tile(to, n), row_stride(tiles.size)});
  const bool finite =
      operands.right({false, from, at(step.value), step.value.stride(1), tile.rows, p.value_dim,
                      block.value_tile(to, n), row_stride(p.value_dim)});
  to[block.finite + static_cast<std::size_t>(n)] = std::byte{finite};
}

/// Packs all keys and values of the step's block.
void pack(const StepContext& step, std::byte* to, const PackedBlock& block,
          const Operands& operands) {
  const Problem& p = step.plan.problem();
  const std::int64_t count = step.schedule.keys.count();
  step.executor.run(p.batch * p.kv_heads * count, [&](std::int64_t n) {
    pack_tile(step, to, block, operands, n / count, n % count, n);
  });
}

/// The packed keys and values of a plane: tiles from `first` on.
struct PackedKeys {
  const PackedBlock& block;
  const std::byte* at;
  std::int64_t first;

  bool finite(std::int64_t n) const {
    return at[block.finite + static_cast<std::size_t>(n)] != std::byte{0};
  }
};

/// Rows of a masked tile that are worked on together: each group goes as far as its own keys.
constexpr std::int64_t kMaskedRows = 24;

/// One (batch row, head, query tile).
class Unit {
 public:
  Unit(const ForwardStep& step, const Pieces& pieces, const Scratch& scratch,
       const UnitScratch& own, const Operands& operands, const PackedKeys& keys, std::int64_t bh,
       std::int64_t i)
      : step_(step),
        p_(step.plan.problem()),
        w_(pieces),
        s_(scratch),
        x_(own),
        o_(operands),
        k_(operands.kernels),
        b_(bh / p_.query_heads),
        h_(bh % p_.query_heads),
        tile_(step.schedule.queries[i]),
        keys_(keys),
        i_(i),
        width_(padded(p_.value_dim)),
        row_(bh * step.schedule.queries.positions.size() + tile_.row) {
    load_query();
    open_state();
  }

  /// The key tiles that may hold visible keys.
  TileRanges visited() const { return visit(step_.schedule.mask, tile_.span, step_.schedule.keys); }

  /// `fetch`: ask for the keys and values of the next tile meanwhile.
  void attend(std::int64_t j, bool fetch, PassCounts& counts) {
    TileBits bits;
    const TileKind kind = step_.schedule.exact_kind(b_, h_, i_, j, bits);
    if (kind == TileKind::kSkip) return;
    const Tile keys = step_.schedule.keys[j];
    const bool masked = kind == TileKind::kMasked;
    counts.tiles.visited += 1;
    counts.tiles.full += masked ? 0 : 1;
    counts.pairs += masked ? bits.pairs : tile_.rows * keys.rows;
    if (!masked) {
      attend_rows(j, {0, tile_.rows}, {0, keys.rows}, nullptr, fetch);
      empty_ = false;
      return;
    }
    clear();
    for (std::int64_t r = 0; r < tile_.rows; r += kMaskedRows) {
      const Range rows{r, std::min(r + kMaskedRows, tile_.rows)};
      const Range seen = visible_keys(bits, rows);
      if (!seen.empty()) attend_rows(j, rows, seen, &bits, false);
    }
  }

  void finish() {
    clear();
    if (step_.last) finish_rows();
  }

 private:
  void load_query() {
    const std::int64_t size = p_.dtype == DType::kFloat32 ? 4 : 2;
    const ConstTensorView& q = step_.query;
    const auto* src = static_cast<const std::byte*>(q.data) +
                      (b_ * q.stride(0) + tile_.row * q.stride(1) + h_ * q.stride(2)) * size;
    o_.left({false, o_.format, src, q.stride(1), tile_.rows, p_.head_dim, x_.query,
             row_stride(o_.words(p_.head_dim))});
  }

  /// In a ring the state itself is worked on; alone, this thread's scratch.
  void open_state() {
    if (w_.acc != nullptr) {
      x_.acc = w_.acc + row_ * width_;
      x_.max = w_.max + row_;
      x_.sum = w_.sum + row_;
    }
    empty_ = step_.first;
    if (step_.first) {
      std::fill_n(x_.max, tile_.rows, -kInfinity<float>);
      std::fill_n(x_.sum, tile_.rows, 0.0F);
    }
  }

  /// Zeros to add to, if no product has written all rows of acc yet.
  void clear() {
    if (empty_) std::fill_n(x_.acc, tile_.rows * width_, 0.0F);
    empty_ = false;
  }

  /// Rows of this tile against keys of tile j. bits: of the whole tile, or null.
  void attend_rows(std::int64_t j, Range rows, Range keys, const TileBits* bits, bool fetch) {
    const std::int64_t n = keys_.first + j;
    const PackedBlock& block = keys_.block;
    const float* packed_keys = block.key_tile(keys_.at, n);
    const float* packed_values = block.value_tile(keys_.at, n);
    const std::int64_t stride = row_stride(step_.schedule.keys.size);
    const std::int64_t query_row = row_stride(o_.words(p_.head_dim));
    const std::int64_t value_row = row_stride(p_.value_dim);
    const std::int64_t m = rows.end - rows.begin;
    const std::int64_t count = keys.end - keys.begin;
    const std::int64_t words = bits ? bits->words : 0;
    const std::uint64_t* seen = bits ? bits->bits + rows.begin * words + keys.begin / 64 : nullptr;
    float* acc = x_.acc + rows.begin * width_;
    const Product scores{o_.pairs,
                         x_.query + rows.begin * query_row,
                         query_row,
                         false,
                         packed_keys + keys.begin,
                         stride,
                         s_.s,
                         stride,
                         m,
                         padded(count),
                         o_.words(p_.head_dim),
                         false,
                         packed_keys + block.key_size,
                         fetch ? block.key_size * 4 : 0};
    const SoftmaxTile weights{o_.pairs,
                              s_.s,
                              stride,
                              m,
                              count,
                              seen,
                              words,
                              {step_.plan.scale(), step_.plan.soft_cap()},
                              x_.max + rows.begin,
                              x_.sum + rows.begin,
                              s_.factor};
    k_.product(scores);
    const Trial trial = k_.softmax_again(weights);
    if (trial != Trial::kDone) {
      if (trial == Trial::kSpoilt) k_.product(scores);
      k_.softmax(weights);
      if (!empty_) k_.scale_rows(acc, width_, m, width_, s_.factor);
    }
    const float* values = packed_values + o_.words(keys.begin) * value_row;
    if (bits != nullptr && !keys_.finite(n)) {
      careful_product({o_.pairs, s_.s, stride, seen, words, m, count, values, value_row,
                       p_.value_dim, acc, width_});
    } else {
      k_.product({o_.pairs, s_.s, stride, false, values, value_row, acc, width_, m, width_,
                  o_.words(count), !empty_, packed_values + block.value_size,
                  fetch ? block.value_size * 4 : 0});
    }
  }

  void finish_rows() {
    constexpr float kLn2 = std::numbers::ln2_v<float>;
    const float sink =
        step_.sinks == nullptr ? -kInfinity<float> : static_cast<float>(step_.sinks[h_]);
    // Apart from the rows of out: a result that is read back would wait for their cache lines.
    for (std::int64_t r = 0; r < tile_.rows; ++r) {
      const auto result = ringattn::finish(x_.max[r] * kLn2, x_.sum[r], sink);
      if (result.zero) std::fill_n(x_.acc + r * width_, p_.value_dim, 0.0F);
      s_.factor[r] = result.zero ? 1.0F : result.factor;
      if (step_.lse.present()) {
        const ptrdiff_t at = b_ * step_.lse.stride(0) + h_ * step_.lse.stride(1) +
                             (tile_.row + r) * step_.lse.stride(2);
        static_cast<float*>(step_.lse.data)[at] = result.lse;
      }
    }
    k_.narrow({format_of(step_.out.dtype), x_.acc, width_, tile_.rows, p_.value_dim, s_.factor, 1,
               element(step_.out, offset(step_.out, b_, tile_.row, h_)), step_.out.stride(1)});
  }

  const ForwardStep& step_;
  const Problem& p_;
  const Pieces& w_;
  const Scratch& s_;
  UnitScratch x_;
  const Operands& o_;
  const KernelTable& k_;
  std::int64_t b_, h_;
  Tile tile_;
  const PackedKeys& keys_;
  std::int64_t i_, width_, row_;
  bool empty_ = true;  // acc is not written yet
};

/// How units are spread over tasks. A plane is a (batch row, kv head): its units share keys and
/// values, all heads of the group for one query tile, then those for the next one. Late query tiles
/// come first, as they are the longest under a causal mask, several a task; the last tasks are of
/// one unit, so that no thread waits long for another at the end.
struct Tasks {
  std::int64_t group, planes, units;
  std::int64_t single;  // of each plane's units
  std::int64_t shared;  // tasks of a plane for the others
  std::int64_t per_plane;
  bool pack;  // a plane's only task packs its keys itself, to read them while they are near

  Tasks(const ForwardStep& step, int threads)
      : group(step.plan.problem().query_heads / step.plan.problem().kv_heads),
        planes(step.plan.problem().batch * step.plan.problem().kv_heads),
        units(group * step.schedule.queries.count()),
        single(threads > 1 && units > kUnits && planes > 0
                   ? std::min(units / 2, ceil_div(3 * threads, planes))
                   : 0),
        shared(ceil_div(units - single, kUnits)) {
    // Smaller tasks rather than threads without one at the end.
    while (single == 0 && shared < units && planes * shared % threads != 0) ++shared;
    per_plane = shared + single;
    pack = per_plane == 1 && step.shared == nullptr;
  }
  std::int64_t count() const { return planes * per_plane; }

  /// The units of a task, in even shares where there are several.
  Range units_of(std::int64_t task) const {
    const std::int64_t t = per_plane - 1 - task / planes;
    if (t < single) return {t, t + 1};
    const std::int64_t rest = units - single;
    return {single + (t - single) * rest / shared, single + (t - single + 1) * rest / shared};
  }
};

/// A task: units of one plane past all of their key tiles.
void run_task(const ForwardStep& step, const Pieces& w, const PackedBlock& block,
              const Operands& operands, const Tasks& tasks, const Scratch& scratch,
              std::int64_t worker, std::int64_t ticket, PassCounts& counts) {
  const std::int64_t plane = ticket % tasks.planes;
  const Range share = tasks.units_of(ticket);
  const std::int64_t first = share.begin;
  const std::int64_t key_tiles = step.schedule.keys.count();
  PackedKeys keys{block, step.shared != nullptr ? step.shared : w.packed, plane * key_tiles};
  if (tasks.pack) {
    keys.first = worker * key_tiles;
    for (std::int64_t j = 0; j < key_tiles; ++j) {
      pack_tile(step, w.packed, block, operands, plane, j, keys.first + j);
    }
  }
  const std::int64_t count = share.end - share.begin;
  std::optional<Unit> units[kUnits];
  TileRanges ranges[kUnits];
  Range all[2] = {{INT64_MAX, 0}, {INT64_MAX, 0}};
  for (std::int64_t u = 0; u < count; ++u) {
    const std::int64_t head = plane * tasks.group + (first + u) % tasks.group;
    units[u].emplace(step, w, scratch, scratch.units[u], operands, keys, head,
                     (first + u) / tasks.group);
    ranges[u] = units[u]->visited();
    for (int run = 0; run < 2; ++run) {
      if (ranges[u].visited[run].empty()) continue;
      all[run].begin = std::min(all[run].begin, ranges[u].visited[run].begin);
      all[run].end = std::max(all[run].end, ranges[u].visited[run].end);
    }
  }
  for (int run = 0; run < 2; ++run) {
    for (std::int64_t j = all[run].begin; j < all[run].end; ++j) {
      for (std::int64_t u = 0; u < count; ++u) {
        if (!ranges[u].visited[run].contains(j)) continue;
        units[u]->attend(j, u == count - 1 && j + 1 < all[run].end, counts);
      }
    }
  }
  for (std::int64_t u = 0; u < count; ++u) units[u]->finish();
}

}  // namespace

std::size_t forward_workspace(const Plan& plan) {
  Carver measure;
  carve(plan, measure);
  return measure.used();
}

std::size_t forward_state(const Plan& plan) {
  return static_cast<std::size_t>(state_rows(plan) * (padded(plan.problem().value_dim) + 2)) *
         sizeof(float);
}

std::size_t shared_block_bytes(const Plan& plan) { return PackedBlock(plan).bytes; }

void share_block(const StepContext& step, std::span<std::byte> to) {
  pack(step, to.data(), PackedBlock(step.plan), Operands(step.plan));
}

PassCounts forward(const ForwardStep& step) {
  const Problem& p = step.plan.problem();
  const Operands operands(step.plan);
  Carver carver(step.workspace);
  Pieces w = carve(step.plan, carver);
  if (!(step.first && step.last)) {
    const std::int64_t rows = state_rows(step.plan);
    w.acc = reinterpret_cast<float*>(step.state.data());
    w.max = w.acc + rows * padded(p.value_dim);
    w.sum = w.max + rows;
  }
  const Tasks tasks(step, step.executor.threads());
  const PackedBlock block(step.plan);
  if (!tasks.pack && step.shared == nullptr) pack(step, w.packed, block, operands);
  PassCounts counts = run_tickets(
      step.executor, tasks.count(), [&](std::int64_t worker, std::int64_t ticket, PassCounts& own) {
        Carver scratch(
            {w.scratch + static_cast<std::size_t>(worker) * w.scratch_bytes, w.scratch_bytes});
        run_task(step, w, block, operands, tasks, carve_scratch(step.plan, scratch), worker, ticket,
                 own);
      });
  counts.flops = flops(p, Pass::kForward, counts.pairs);
  return counts;
}

}  // namespace ringattn::cpu
