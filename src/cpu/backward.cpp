// SPDX-License-Identifier: Apache-2.0
// The backward pass on the CPU (FlashAttention-2, Dao 2023, arXiv 2307.08691, algorithm 2): P is
// recomputed from lse. Each task owns one (batch row, kv head, key tile) and its dK and dV; dQ
// tiles are shared, and take their additions in the order of key tiles, so that no result depends
// on how tasks are spread. Tasks are started in that order: whoever waits, waits for a task that
// runs.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numbers>
#include <numeric>
#include <thread>

#include "counts.h"
#include "cpu/cpu.h"
#include "cpu/tickets.h"
#include "dtype.h"
#include "merge.h"
#include "workspace.h"

namespace ringattn::cpu {
namespace {

/// The last key tile whose part a dQ tile has taken; -1: none. One cache line each would cost
/// more memory than it saves time.
using Progress = std::atomic<std::int32_t>;

/// Rows of a query tile as the left and the right side of products; [B, H, query tiles] of them.
struct PackedRows {
  float* left;           // [M, left_row]
  float* right;          // [words of M, right_row]; `left` itself unless of pairs
  std::uint8_t* finite;  // all values are finite
  std::int64_t left_row, right_row;
  std::int64_t left_size, right_size;  // floats of a tile
};

/// The pieces of StepContext::state and StepContext::workspace.
struct Pieces {
  float* dquery;       // state, [B, H, Sq, padded D], over all steps, without softmax_scale
  float* lse;          // state, [B, H, Sq] log2 units, +inf where there is no weight
  float* delta;        // state, [B, H, Sq]
  Progress* progress;  // [B, H, query tiles]
  PackedRows query;    // of D, for every key tile of every step
  PackedRows dout;     // of Dv
  std::byte* scratch;
  std::size_t scratch_bytes;
};

/// Tiles of dS that wait for their turn to be added to dQ. A thread whose turn has not come goes on
/// with the next tile; with so many, one that is slower for a while holds nobody.
constexpr int kAhead = 4;

/// What one thread works in.
struct Scratch {
  float* keys_t;            // [D, stride of N]
  float* values_t;          // [Dv, stride of N]
  float* keys;              // [N, stride of D]
  float* s;                 // [M, stride of N]
  float* dp;                // [M, stride of N], of pairs
  float* tiles_ds[kAhead];  // [M, stride of N] each; unless of pairs, dP before that
  float* dkey;              // [N, padded D]
  float* dvalue;            // [N, padded Dv]
};

Scratch carve_scratch(const Plan& plan, Carver& carver) {
  const TileShape tile = plan.tiles(Pass::kBackward);
  const Problem& p = plan.problem();
  const Operands o(plan);
  const std::int64_t d = row_stride(p.head_dim);
  const std::int64_t n = row_stride(tile.keys);
  const std::int64_t m = tile.queries;
  Scratch s{};
  s.keys_t = carver.take_array<float>(o.words(p.head_dim) * n);
  s.values_t = carver.take_array<float>(o.words(p.value_dim) * n);
  s.keys = carver.take_array<float>(o.words(tile.keys) * d);
  s.s = carver.take_array<float>(m * n);
  s.dp = carver.take_array<float>(o.pairs ? m * n : 0);
  for (float*& ds : s.tiles_ds) ds = carver.take_array<float>(m * row_stride(o.words(tile.keys)));
  s.dkey = carver.take_array<float>(tile.keys * d);
  s.dvalue = carver.take_array<float>(tile.keys * row_stride(p.value_dim));
  return s;
}

std::int64_t state_rows(const Plan& plan) {
  const Problem& p = plan.problem();
  return p.batch * p.query_heads * plan.query_rows(plan.rank()).size();
}

/// Room for `count` tiles of at most `rows` rows of `columns` values.
PackedRows carve_rows(Carver& carver, const Operands& o, std::int64_t count, std::int64_t rows,
                      std::int64_t columns) {
  PackedRows x{};
  x.left_row = row_stride(o.words(columns));
  x.left_size = rows * x.left_row;
  x.left = carver.take_array<float>(count * x.left_size);
  x.right_row = row_stride(columns);
  x.right_size = o.words(rows) * x.right_row;
  x.right = o.pairs ? carver.take_array<float>(count * x.right_size) : x.left;
  x.finite = carver.take_array<std::uint8_t>(count);
  return x;
}

Pieces carve(const Plan& plan, Carver& carver) {
  const Problem& p = plan.problem();
  const Operands o(plan);
  const Positions queries = plan.query_rows(plan.rank());
  const std::int64_t heads = p.batch * p.query_heads;
  const std::int64_t most = plan.tiles(Pass::kBackward).queries;
  const std::int64_t tiles = Tiling{queries, most, nullptr}.count();
  const std::int64_t rows = std::min(most, queries.size());
  Pieces w{};
  // With explicit positions there is one run, and at most one tile fewer.
  w.progress = carver.take_array<Progress>(heads * (tiles + 1));
  w.query = carve_rows(carver, o, heads * tiles, rows, p.head_dim);
  w.dout = carve_rows(carver, o, heads * tiles, rows, p.value_dim);
  Carver one;
  carve_scratch(plan, one);
  w.scratch_bytes = one.used();
  w.scratch = carver.take(w.scratch_bytes * static_cast<std::size_t>(threads(plan))).data();
  return w;
}

const std::byte* rows_at(const ConstTensorView& v, std::int64_t b, std::int64_t i, std::int64_t h) {
  return static_cast<const std::byte*>(v.data) + offset(v, b, i, h) * size_of(v.dtype);
}

/// sum over d of out * dout of one row, in a fixed order; 0 and `zero` if out is 0 everywhere.
template <DType kOut, DType kDout>
double dot_of_row(const void* out, const void* dout, std::int64_t n, bool& zero) {
  constexpr std::int64_t kSums = 8;  // chains that do not wait for each other
  double sums[kSums] = {};
  double nonzero[kSums] = {};
  const auto add = [&](std::int64_t d, std::int64_t l) {
    const double x = load(kOut, out, d + l);
    nonzero[l] = std::max(nonzero[l], x != 0.0 ? 1.0 : 0.0);
    sums[l] += x * load(kDout, dout, d + l);
  };
  std::int64_t d = 0;
  for (; d + kSums <= n; d += kSums) {
    for (std::int64_t l = 0; l < kSums; ++l) add(d, l);
  }
  for (std::int64_t l = 0; l < n - d; ++l) add(d, l);
  zero = std::accumulate(std::begin(nonzero), std::end(nonzero), 0.0) == 0.0;
  return std::accumulate(std::begin(sums), std::end(sums), 0.0);
}

/// `out` may be kept in float32 where `dout` is not.
double dot_of_row(DType out_type, const void* out, DType dout_type, const void* dout,
                  std::int64_t n, bool& zero) {
  const auto with_out = [&]<DType kOut>() {
    switch (dout_type) {
      case DType::kBFloat16: return dot_of_row<kOut, DType::kBFloat16>(out, dout, n, zero);
      case DType::kFloat16: return dot_of_row<kOut, DType::kFloat16>(out, dout, n, zero);
      default: return dot_of_row<kOut, DType::kFloat32>(out, dout, n, zero);
    }
  };
  switch (out_type) {
    case DType::kBFloat16: return with_out.template operator()<DType::kBFloat16>();
    case DType::kFloat16: return with_out.template operator()<DType::kFloat16>();
    default: return with_out.template operator()<DType::kFloat32>();
  }
}

/// Rows that one task prepares or finishes.
constexpr std::int64_t kChunk = 128;

float lse_at(const BackwardStep& step, std::int64_t b, std::int64_t h, std::int64_t i) {
  return static_cast<const float*>(step.lse.data)[offset(step.lse, b, h, i)];
}

/// Fills lse and delta of rows of one head.
void prepare_rows(const BackwardStep& step, const Pieces& w, std::int64_t bh, Range rows) {
  const Problem& p = step.plan.problem();
  const std::int64_t b = bh / p.query_heads;
  const std::int64_t h = bh % p.query_heads;
  const std::int64_t seq = step.query.dim(1);
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const float lse = lse_at(step, b, h, i);
    bool zero = true;
    double delta = dot_of_row(step.out.dtype, rows_at(step.out, b, i, h), step.dout.dtype,
                              rows_at(step.dout, b, i, h), p.value_dim, zero);
    // A row that saw nothing has out 0 and does not look at dout, which may be anything there.
    if (zero && step.sinks != nullptr && static_cast<float>(step.sinks[h]) == lse) delta = 0.0;
    if (step.dlse.present()) {
      delta -= static_cast<const float*>(step.dlse.data)[offset(step.dlse, b, h, i)];
    }
    w.lse[bh * seq + i] = backward_lse(lse) * std::numbers::log2e_v<float>;
    w.delta[bh * seq + i] = static_cast<float>(delta);
  }
}

/// One head's part of dsinks, over batch and rows in order.
double dsink_of(const BackwardStep& step, const Pieces& w, std::int64_t h) {
  const Problem& p = step.plan.problem();
  const double sink = step.sinks[h];
  if (std::abs(sink) == kInfinity<double>) return 0.0;
  const std::int64_t seq = step.query.dim(1);
  double dsink = 0.0;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const float* delta = w.delta + (b * p.query_heads + h) * seq;
    for (std::int64_t i = 0; i < seq; ++i) {
      dsink -= std::exp(sink - lse_at(step, b, h, i)) * delta[i];
    }
  }
  return dsink;
}

/// Calls f(bh, rows) for every chunk of every head's rows.
template <class F>
void for_chunks(const BackwardStep& step, const F& f) {
  const std::int64_t seq = step.query.dim(1);
  const std::int64_t chunks = ceil_div(seq, kChunk);
  const Problem& p = step.plan.problem();
  step.executor.run(p.batch * p.query_heads * chunks, [&](std::int64_t n) {
    const std::int64_t begin = n % chunks * kChunk;
    f(n / chunks, Range{begin, std::min(begin + kChunk, seq)});
  });
}

void prepare(const BackwardStep& step, const Pieces& w) {
  const std::int64_t seq = step.query.dim(1);
  const std::int64_t row = padded(step.plan.problem().head_dim);
  for_chunks(step, [&](std::int64_t bh, Range rows) {
    std::fill_n(w.dquery + (bh * seq + rows.begin) * row, (rows.end - rows.begin) * row, 0.0F);
    prepare_rows(step, w, bh, rows);
  });
  if (step.dsinks == nullptr) return;
  step.executor.run(step.plan.problem().query_heads, [&](std::int64_t h) {
    step.dsinks[h] = step.sinks == nullptr ? 0.0 : dsink_of(step, w, h);
  });
}

/// Packs a tile of rows as tile `n`.
void pack_tile(const Operands& o, const PackedRows& to, std::int64_t n, Widen w) {
  w.dst = to.left + n * to.left_size;
  w.dst_row = to.left_row;
  to.finite[n] = o.left(w) ? 1 : 0;
  if (!o.pairs) return;
  w.dst = to.right + n * to.right_size;
  w.dst_row = to.right_row;
  o.right(w);
}

/// Packs the query and dout rows that all key tiles take, of every step.
void pack(const BackwardStep& step, const Pieces& w, const Operands& o) {
  const Problem& p = step.plan.problem();
  const std::int64_t tiles = step.schedule.queries.count();
  step.executor.run(p.batch * p.query_heads * tiles, [&](std::int64_t n) {
    const std::int64_t b = n / tiles / p.query_heads;
    const std::int64_t h = n / tiles % p.query_heads;
    const Tile tile = step.schedule.queries[n % tiles];
    pack_tile(o, w.query, n,
              {false, o.format, rows_at(step.query, b, tile.row, h), step.query.stride(1),
               tile.rows, p.head_dim, nullptr, 0});
    pack_tile(o, w.dout, n,
              {false, o.format, rows_at(step.dout, b, tile.row, h), step.dout.stride(1), tile.rows,
               p.value_dim, nullptr, 0});
  });
}

/// One (batch row, kv head, key tile).
class Task {
 public:
  Task(const BackwardStep& step, const Pieces& pieces, const Scratch& scratch,
       const Operands& operands, std::int64_t bg, std::int64_t j)
      : step_(step),
        p_(step.plan.problem()),
        w_(pieces),
        x_(scratch),
        o_(operands),
        k_(operands.kernels),
        shape_(step.plan.tiles(Pass::kBackward)),
        stride_(row_stride(shape_.keys)),
        ds_row_(row_stride(operands.words(shape_.keys))),
        d_(row_stride(p_.head_dim)),
        v_(row_stride(p_.value_dim)),
        b_(bg / p_.kv_heads),
        g_(bg % p_.kv_heads),
        j_(j),
        keys_(step.schedule.keys[j]) {}

  void run(PassCounts& counts) {
    load_keys();
    const std::int64_t group = p_.query_heads / p_.kv_heads;
    // Who takes part in the order of dQ is decided by kind(). With a stride, visit() knows more
    // of the gaps between positions than kind() does, and would leave some out.
    const Tiling& queries = step_.schedule.queries;
    TileRanges ranges = visit(step_.schedule.mask.transposed(), keys_.span, queries);
    if (queries.positions.stride != 1) {
      ranges.visited[0] = {0, queries.count()};
      ranges.visited[1] = {};
    }
    for (std::int64_t h = g_ * group; h < (g_ + 1) * group; ++h) {
      for (const Range& tiles : ranges.visited) {
        for (std::int64_t i = tiles.begin; i < tiles.end; ++i) attend(h, i, counts);
      }
    }
    flush();
    store_keys();
  }

 private:
  void load_keys() {
    const auto* key = rows_at(step_.key, b_, keys_.row, g_);
    const auto* value = rows_at(step_.value, b_, keys_.row, g_);
    const Widen keys{false,      o_.format,   key,     step_.key.stride(1),
                     keys_.rows, p_.head_dim, nullptr, 0};
    o_.right_transposed(to(keys, x_.keys_t, stride_));
    keys_finite_ = o_.right(to(keys, x_.keys, d_));
    o_.right_transposed({false, o_.format, value, step_.value.stride(1), keys_.rows, p_.value_dim,
                         x_.values_t, stride_});
    std::fill_n(x_.dkey, keys_.rows * d_, 0.0F);
    std::fill_n(x_.dvalue, keys_.rows * v_, 0.0F);
  }

  static Widen to(Widen w, float* dst, std::int64_t dst_row) {
    w.dst = dst;
    w.dst_row = dst_row;
    return w;
  }

  void store_keys() {
    auto* dkey = reinterpret_cast<float*>(step_.dkey_sum);
    auto* dvalue = reinterpret_cast<float*>(step_.dvalue_sum);
    for (std::int64_t r = 0; r < keys_.rows; ++r) {
      const std::int64_t row = (b_ * step_.key.dim(1) + keys_.row + r) * p_.kv_heads + g_;
      float* part = x_.dkey + r * d_;  // rounded before it is added, as a ring's own sums are
      for (std::int64_t c = 0; c < p_.head_dim; ++c) part[c] *= step_.plan.scale();
      store(part, p_.head_dim, dkey + row * p_.head_dim);
      store(x_.dvalue + r * v_, p_.value_dim, dvalue + row * p_.value_dim);
    }
  }

  void store(const float* part, std::int64_t n, float* sum) const {
    if (!step_.adds) {
      std::copy_n(part, n, sum);
      return;
    }
    for (std::int64_t i = 0; i < n; ++i) sum[i] += part[i];
  }

  void attend(std::int64_t h, std::int64_t i, PassCounts& counts) {
    if (step_.schedule.kind(b_, h, i, j_) == TileKind::kSkip) return;
    const std::int64_t bh = b_ * p_.query_heads + h;
    TileBits bits;
    const TileKind kind = step_.schedule.exact_kind(b_, h, i, j_, bits);
    if (kind != TileKind::kSkip) {
      const Tile queries = step_.schedule.queries[i];
      const bool masked = kind == TileKind::kMasked;
      counts.tiles.visited += 1;
      counts.tiles.full += masked ? 0 : 1;
      counts.pairs += masked ? bits.pairs : queries.rows * keys_.rows;
      float* ds = take_slot();
      float* dp = o_.pairs ? x_.dp : ds;
      weigh(bh, i, queries, masked ? &bits : nullptr, dp, ds);
      add_to_keys(bh, i, queries, masked ? &bits : nullptr, dp);
      if (masked && !keys_finite_) {
        flush();
        wait_for_turn(bh, h, i);
        add_carefully(bh, queries, bits, ds);
        progress(bh, i).store(static_cast<std::int32_t>(j_), std::memory_order_release);
        return;
      }
      pending_[(begin_ + count_++) % kAhead] = {bh, h, i, queries, ds};
    } else {
      take_slot();
      pending_[(begin_ + count_++) % kAhead] = {bh, h, i, {}, nullptr};
    }
    while (count_ > 0 && is_turn(pending_[begin_])) add_first();
  }

  /// dS of a query tile on its way to dQ; null: nothing to add, only its turn to pass on.
  struct Pending {
    std::int64_t bh, h, i;
    Tile tile;
    const float* ds;
  };

  /// A buffer for the next dS.
  float* take_slot() {
    if (count_ == kAhead) add_first();
    return x_.tiles_ds[(begin_ + count_) % kAhead];
  }

  void flush() {
    while (count_ > 0) add_first();
  }

  /// dQ += dS K for the tile that has waited longest.
  void add_first() {
    const Pending& first = pending_[begin_];
    wait_for_turn(first.bh, first.h, first.i);
    if (first.ds != nullptr) add_to_queries(first.bh, first.tile, first.ds);
    progress(first.bh, first.i).store(static_cast<std::int32_t>(j_), std::memory_order_release);
    begin_ = (begin_ + 1) % kAhead;
    --count_;
  }

  /// P and dS of one tile.
  void weigh(std::int64_t bh, std::int64_t i, const Tile& tile, const TileBits* bits, float* dp,
             float* ds) {
    const std::int64_t n = padded(keys_.rows);
    const std::int64_t at = packed(bh, i);
    k_.product({o_.pairs, w_.query.left + at * w_.query.left_size, w_.query.left_row, false,
                x_.keys_t, stride_, x_.s, stride_, tile.rows, n, o_.words(p_.head_dim), false,
                w_.dout.left + at * w_.dout.left_size, w_.dout.left_size * 4});
    k_.product({o_.pairs, w_.dout.left + at * w_.dout.left_size, w_.dout.left_row, false,
                x_.values_t, stride_, dp, stride_, tile.rows, n, o_.words(p_.value_dim), false,
                dquery_of(bh, tile), tile.rows * padded(p_.head_dim) * 4});
    const std::int64_t row = bh * step_.query.dim(1) + tile.row;
    const Scoring scoring{step_.plan.scale(), step_.plan.soft_cap()};
    k_.gradient({x_.s, dp, o_.pairs ? ds : nullptr, ds_row_, stride_, tile.rows, keys_.rows,
                 bits ? bits->bits : nullptr, bits ? bits->words : 0, scoring, w_.lse + row,
                 w_.delta + row});
  }

  /// dV += P^T dO, dK += dS^T Q.
  void add_to_keys(std::int64_t bh, std::int64_t i, const Tile& tile, const TileBits* bits,
                   const float* dp) {
    const std::int64_t at = packed(bh, i);
    add_transposed(x_.s, w_.dout.right + at * w_.dout.right_size, v_, tile.rows, p_.value_dim,
                   x_.dvalue, bits, w_.dout.finite[at] != 0);
    add_transposed(dp, w_.query.right + at * w_.query.right_size, d_, tile.rows, p_.head_dim,
                   x_.dkey, bits, w_.query.finite[at] != 0);
  }

  /// Where a query tile is in PackedRows.
  std::int64_t packed(std::int64_t bh, std::int64_t i) const {
    return bh * step_.schedule.queries.count() + i;
  }

  /// out [N, columns] += weights^T x; the rows of x and out are `row` floats.
  void add_transposed(const float* weights, const float* x, std::int64_t row, std::int64_t rows,
                      std::int64_t columns, float* out, const TileBits* bits, bool finite) {
    if (bits != nullptr && !finite) {
      careful_product_transposed({o_.pairs, weights, stride_, bits->bits, bits->words, rows,
                                  keys_.rows, x, row, columns, out, row});
    } else {
      // Words of two rows lie in every other row.
      k_.product({o_.pairs, weights, o_.pairs ? 2 * stride_ : stride_, true, x, row, out, row,
                  keys_.rows, padded(columns), o_.words(rows), true});
    }
  }

  float* dquery_of(std::int64_t bh, const Tile& tile) const {
    return w_.dquery + (bh * step_.query.dim(1) + tile.row) * padded(p_.head_dim);
  }

  void add_to_queries(std::int64_t bh, const Tile& tile, const float* ds) {
    const std::int64_t width = padded(p_.head_dim);
    k_.product({o_.pairs, ds, ds_row_, false, x_.keys, d_, dquery_of(bh, tile), width, tile.rows,
                width, o_.words(keys_.rows), true});
  }

  void add_carefully(std::int64_t bh, const Tile& tile, const TileBits& bits, const float* ds) {
    careful_product({o_.pairs, ds, ds_row_, bits.bits, bits.words, tile.rows, keys_.rows, x_.keys,
                     d_, p_.head_dim, dquery_of(bh, tile), padded(p_.head_dim)});
  }

  Progress& progress(std::int64_t bh, std::int64_t i) { return w_.progress[packed(bh, i)]; }

  /// The key tile before this one that visits query tile i, or -1.
  std::int64_t before(std::int64_t h, std::int64_t i) const {
    std::int64_t before = j_ - 1;
    while (before >= 0 && step_.schedule.kind(b_, h, i, before) == TileKind::kSkip) --before;
    return before;
  }

  bool is_turn(const Pending& p) {
    return progress(p.bh, p.i).load(std::memory_order_acquire) == before(p.h, p.i);
  }

  /// Waits until the key tile before this one has added its part to query tile i.
  void wait_for_turn(std::int64_t bh, std::int64_t h, std::int64_t i) {
    const std::int64_t turn = before(h, i);
    constexpr int kSpins = 200;  // then let a thread that lost its core run
    for (int spin = 0; progress(bh, i).load(std::memory_order_acquire) != turn; ++spin) {
      if (spin >= kSpins) std::this_thread::yield();
    }
  }

  const BackwardStep& step_;
  const Problem& p_;
  const Pieces& w_;
  Scratch x_;
  const Operands& o_;
  const KernelTable& k_;
  TileShape shape_;
  std::int64_t stride_, ds_row_, d_, v_, b_, g_, j_;
  Tile keys_;
  bool keys_finite_ = true;
  Pending pending_[kAhead];
  int begin_ = 0;  // of those that wait, in the order they came
  int count_ = 0;
};

void finish_queries(const BackwardStep& step, const Pieces& w, const KernelTable& k) {
  const Problem& p = step.plan.problem();
  const std::int64_t seq = step.query.dim(1);
  const std::int64_t row = padded(p.head_dim);
  const float scale = step.plan.scale();
  for_chunks(step, [&](std::int64_t bh, Range rows) {
    const std::int64_t at = offset(step.dquery, bh / p.query_heads, rows.begin, bh % p.query_heads);
    k.narrow({format_of(step.dquery.dtype), w.dquery + (bh * seq + rows.begin) * row, row,
              rows.end - rows.begin, p.head_dim, &scale, 0, element(step.dquery, at),
              step.dquery.stride(1)});
  });
}

}  // namespace

std::size_t backward_workspace(const Plan& plan) {
  Carver measure;
  carve(plan, measure);
  return measure.used();
}

std::size_t backward_state(const Plan& plan) {
  return static_cast<std::size_t>(state_rows(plan) * (padded(plan.problem().head_dim) + 2)) *
         sizeof(float);
}

PassCounts backward(const BackwardStep& step) {
  const Problem& p = step.plan.problem();
  const Operands operands(step.plan);
  Carver carver(step.workspace);
  Pieces w = carve(step.plan, carver);
  w.dquery = reinterpret_cast<float*>(step.state.data());
  w.lse = w.dquery + state_rows(step.plan) * padded(p.head_dim);
  w.delta = w.lse + state_rows(step.plan);
  if (step.first) prepare(step, w);
  if (!step.continued) pack(step, w, operands);
  const std::int64_t heads = p.batch * p.query_heads;
  for (std::int64_t n = 0; n < heads * step.schedule.queries.count(); ++n) {
    std::construct_at(w.progress + n, -1);
  }
  const std::int64_t planes = p.batch * p.kv_heads;
  PassCounts counts = run_tickets(
      step.executor, planes * step.schedule.keys.count(),
      [&](std::int64_t worker, std::int64_t ticket, PassCounts& own) {
        Carver scratch(
            {w.scratch + static_cast<std::size_t>(worker) * w.scratch_bytes, w.scratch_bytes});
        // Key tiles in order, neighbours in different heads: threads seldom meet at one dQ tile.
        Task(step, w, carve_scratch(step.plan, scratch), operands, ticket % planes, ticket / planes)
            .run(own);
      });
  if (step.last) finish_queries(step, w, operands.kernels);
  counts.flops = flops(p, Pass::kBackward, counts.pairs);
  return counts;
}

}  // namespace ringattn::cpu
