// SPDX-License-Identifier: Apache-2.0
#include "cpu/backward_task.h"

#include <algorithm>
#include <thread>

#include "dtype.h"

namespace ringattn::cpu {

TaskScratch carve_task(const Plan& plan, Carver& carver) {
  const TileShape tile = plan.tiles(Pass::kBackward);
  const Problem& p = plan.problem();
  const Operands o(plan);
  const std::int64_t row = row_stride(tile.keys);
  TaskScratch s{};
  const PackedBlock block(plan, Pass::kBackward);
  s.packed = carver.take(plan.shares_blocks() ? 0 : block.tile_bytes()).data();
  s.s = carver.take_array<float>((o.pairs ? tile.queries + tile.queries % 2 : tile.queries) * row);
  for (float*& ds : s.tiles_ds) ds = carver.take_array<float>(tile.queries * row);
  s.dkey = carver.take_array<float>(tile.keys * row_stride(p.head_dim));
  s.dvalue = carver.take_array<float>(tile.keys * row_stride(p.value_dim));
  return s;
}

Task::Task(const BackwardStep& step, const BackwardPieces& pieces, const TaskScratch& scratch,
           const Operands& operands, const PackedBlock& block, const Keys& keys, const Keys& next)
    : step_(step),
      p_(step.plan.problem()),
      w_(pieces),
      x_(scratch),
      o_(operands),
      k_(operands.kernels),
      stride_(row_stride(step.schedule.keys.size)),
      d_(row_stride(p_.head_dim)),
      v_(row_stride(p_.value_dim)),
      b_(keys.plane / p_.kv_heads),
      g_(keys.plane % p_.kv_heads),
      j_(keys.tile),
      next_(next),
      keys_(step.schedule.keys[j_]),
      packed_(load_keys(block)) {}

PackedTile Task::load_keys(const PackedBlock& block) {
  const std::int64_t plane = b_ * p_.kv_heads + g_;
  if (step_.shared != nullptr) {
    return block.tile(step_.shared, plane * step_.schedule.keys.count() + j_);
  }
  block.pack(step_, plane, j_, x_.packed, 0);
  return block.tile(x_.packed, 0);
}

/// Zeros to add to, if no product has written dkey and dvalue yet.
void Task::clear_keys() {
  if (!empty_) return;
  std::fill_n(x_.dkey, keys_.rows * d_, 0.0F);
  std::fill_n(x_.dvalue, keys_.rows * v_, 0.0F);
  empty_ = false;
}

/// Products are rounded before they are added, as a ring's own sums are.
void Task::add_rows(float* x, std::int64_t x_row, std::int64_t columns, float factor, float* sum,
                    std::int64_t sum_row) const {
  for (std::int64_t r = 0; r < keys_.rows; ++r) {
    float* part = x + r * x_row;
    for (std::int64_t c = 0; c < columns; ++c) part[c] *= factor;
  }
  for (std::int64_t r = 0; r < keys_.rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) sum[r * sum_row + c] += x[r * x_row + c];
  }
}

void Task::store_keys() {
  clear_keys();
  const float scale = step_.plan.scale();
  const float one = 1.0F;
  const std::int64_t row = (b_ * step_.key.dim(1) + keys_.row) * p_.kv_heads + g_;
  const auto store = [&](float* x, std::int64_t x_row, std::int64_t columns, const float& factor,
                         std::byte* sum) {
    float* to = reinterpret_cast<float*>(sum) + row * columns;
    const std::int64_t to_row = p_.kv_heads * columns;
    if (step_.adds) {
      add_rows(x, x_row, columns, factor, to, to_row);
    } else {
      k_.narrow({Format::kFloat32, x, x_row, keys_.rows, columns, &factor, 0, to, to_row});
    }
  };
  store(x_.dkey, d_, p_.head_dim, scale, step_.dkey_sum);
  store(x_.dvalue, v_, p_.value_dim, one, step_.dvalue_sum);
}

void Task::run(PassCounts& counts) {
  const std::int64_t group = p_.query_heads / p_.kv_heads;
  // Who takes part in the order of dQ is decided by kind(). With a stride, visit() knows more
  // of the gaps between positions than kind() does, and would leave some out.
  const Tiling& queries = step_.schedule.queries;
  TileRanges ranges = visit(step_.schedule.mask.transposed(), keys_.span, queries);
  if (queries.positions.stride != 1) {
    ranges.visited[0] = {0, queries.count()};
    ranges.visited[1] = {};
  }
  const Range& end = ranges.visited[ranges.visited[1].empty() ? 0 : 1];
  for (std::int64_t h = g_ * group; h < (g_ + 1) * group; ++h) {
    for (const Range& tiles : ranges.visited) {
      for (std::int64_t i = tiles.begin; i < tiles.end; ++i) {
        last_ = h == (g_ + 1) * group - 1 && i == end.end - 1;
        attend(h, i, counts);
      }
    }
  }
  flush();
  store_keys();
}

void Task::attend(std::int64_t h, std::int64_t i, PassCounts& counts) {
  if (step_.schedule.kind(b_, h, i, j_) == TileKind::kSkip) return;
  Pending tile{b_ * p_.query_heads + h, h, i, take_slot(), {}, 0};
  TileBits bits;
  const TileKind kind = step_.schedule.exact_kind(b_, h, i, j_, bits);
  const bool masked = kind == TileKind::kMasked;
  if (kind != TileKind::kSkip) {
    const std::int64_t rows = step_.schedule.queries[i].rows;
    counts.tiles.visited += 1;
    counts.tiles.full += masked ? 0 : 1;
    counts.pairs += masked ? bits.pairs : rows * keys_.rows;
    if (masked) {
      split(tile, bits);
      clear_keys();
    } else {
      tile.parts[tile.count++] = {{0, rows}, {0, keys_.rows}};
    }
    for (int n = 0; n < tile.count; ++n) {
      weigh(tile, tile.parts[n], masked ? &bits : nullptr);
      add_to_keys(tile, tile.parts[n], masked ? &bits : nullptr);
    }
  }
  if (masked && !packed_.finite) {
    flush();
    wait_for_turn(tile);
    add_carefully(tile, bits);
    progress(tile).store(static_cast<std::int32_t>(j_), std::memory_order_release);
    return;
  }
  pending_[(begin_ + count_++) % kAhead] = tile;
  while (count_ > 0 && is_turn(pending_[begin_])) add_first();
}

/// The rows of a masked tile in groups, each as far as its own keys.
void Task::split(Pending& tile, const TileBits& bits) const {
  const std::int64_t all = step_.schedule.queries[tile.i].rows;
  for (std::int64_t r = 0; r < all; r += kMaskedRows) {
    const Range rows{r, std::min(r + kMaskedRows, all)};
    const Range keys = visible_keys(bits, rows);
    if (!keys.empty()) tile.parts[tile.count++] = {rows, keys};
  }
}

/// A buffer for the next dS: if nothing waits always the same one, which is still near.
float* Task::take_slot() {
  if (count_ == kAhead) add_first();
  if (count_ == 0) begin_ = 0;
  return x_.tiles_ds[(begin_ + count_) % kAhead];
}

void Task::flush() {
  while (count_ > 0) add_first();
}

/// dQ += dS K for the tile that has waited longest.
void Task::add_first() {
  const Pending& first = pending_[begin_];
  wait_for_turn(first);
  for (int n = 0; n < first.count; ++n) add_to_queries(first, first.parts[n]);
  progress(first).store(static_cast<std::int32_t>(j_), std::memory_order_release);
  begin_ = (begin_ + 1) % kAhead;
  --count_;
}

/// P and dS. They lie in their tile, at rows and keys of the part.
void Task::weigh(const Pending& tile, const Part& part, const TileBits* bits) {
  const Range rows = part.rows;
  const Range keys = part.keys;
  const std::int64_t m = rows.end - rows.begin;
  const std::int64_t n = keys.end - keys.begin;
  const std::int64_t at = rows.begin * stride_ + keys.begin;
  const std::int64_t q = packed(tile);
  const float* query = w_.query.left + q * w_.query.left_size + rows.begin * w_.query.left_row;
  const float* dout = w_.dout.left + q * w_.dout.left_size + rows.begin * w_.dout.left_row;
  // Each product asks for what the next ones read.
  const Region more = o_.pairs ? right_of(w_.dout, tile, part) : Region{};
  k_.product({o_.pairs,
              query,
              w_.query.left_row,
              false,
              packed_.keys_t + keys.begin,
              stride_,
              x_.s + at,
              stride_,
              m,
              padded(n),
              o_.words(p_.head_dim),
              false,
              {{dout, m * w_.dout.left_row * 4, 1}}});
  k_.product({o_.pairs,
              dout,
              w_.dout.left_row,
              false,
              packed_.values_t + keys.begin,
              stride_,
              ds_of(tile, part),
              stride_,
              m,
              padded(n),
              o_.words(p_.value_dim),
              false,
              {{dquery_of(tile, rows.begin), m * padded(p_.head_dim) * 4, 1}, more}});
  const std::int64_t row = row_of(tile, rows.begin);
  const std::int64_t words = bits ? bits->words : 0;
  const std::uint64_t* seen = bits ? bits->bits + rows.begin * words + keys.begin / 64 : nullptr;
  k_.gradient({o_.pairs,
               x_.s + at,
               ds_of(tile, part),
               stride_,
               m,
               n,
               seen,
               words,
               {step_.plan.scale(), step_.plan.soft_cap()},
               w_.lse + row,
               w_.delta + row});
}

/// What the next task packs.
void Task::ask_for_next(Region& keys, Region& values) const {
  const Tile tile = step_.schedule.keys[next_.tile];
  const std::int64_t b = next_.plane / p_.kv_heads;
  const std::int64_t g = next_.plane % p_.kv_heads;
  keys = rows_of(step_.key, b, tile.row, g, tile.rows);
  values = rows_of(step_.value, b, tile.row, g, tile.rows);
}

/// The rows of a part of a query tile as the right side of products.
Region Task::right_of(const PackedRows& x, const Pending& tile, const Part& part) const {
  const std::int64_t begin = o_.words(part.rows.begin);
  return {x.right + packed(tile) * x.right_size + begin * x.right_row,
          (o_.words(part.rows.end) - begin) * x.right_row * std::int64_t{sizeof(float)}, 1};
}

/// dV += P^T dO, dK += dS^T Q.
void Task::add_to_keys(const Pending& tile, const Part& part, const TileBits* bits) {
  const std::int64_t q = packed(tile);
  const std::int64_t row = o_.words(part.rows.begin);
  Region before = o_.pairs ? right_of(w_.query, tile, part) : Region{};
  Region after;  // of the next tile, or of the next task's keys
  if (part.rows.end == step_.schedule.queries[tile.i].rows) {
    after = {w_.query.left + (q + 1) * w_.query.left_size,
             w_.query.left_size * std::int64_t{sizeof(float)}, 1};
    if (last_ && next_.tile >= 0) ask_for_next(before, after);
  }
  add_transposed(part, bits, x_.s, w_.dout.right + q * w_.dout.right_size + row * v_, v_,
                 p_.value_dim, x_.dvalue, w_.dout.finite[q] != 0, before);
  add_transposed(part, bits, o_.pairs ? x_.s + stride_ : tile.ds,
                 w_.query.right + q * w_.query.right_size + row * d_, d_, p_.head_dim, x_.dkey,
                 w_.query.finite[q] != 0, after);
  empty_ = false;
}

/// out [N, columns] += weights^T x; the rows of x and out are `row` floats.
void Task::add_transposed(const Part& part, const TileBits* bits, const float* weights,
                          const float* x, std::int64_t row, std::int64_t columns, float* out,
                          bool finite, const Region& next) {
  const std::int64_t rows = part.rows.end - part.rows.begin;
  const std::int64_t keys = part.keys.end - part.keys.begin;
  weights += part.rows.begin * stride_ + part.keys.begin;
  out += part.keys.begin * row;
  if (bits != nullptr && !finite) {
    careful_product_transposed({o_.pairs, false, weights, stride_,
                                bits->bits + part.rows.begin * bits->words + part.keys.begin / 64,
                                bits->words, rows, keys, x, row, columns, out, row});
  } else {
    // Words of two rows lie in every other row.
    k_.product({o_.pairs,
                weights,
                o_.pairs ? 2 * stride_ : stride_,
                true,
                x,
                row,
                out,
                row,
                keys,
                padded(columns),
                o_.words(rows),
                !empty_,
                {next}});
  }
}

void Task::add_to_queries(const Pending& tile, const Part& part) {
  const std::int64_t width = padded(p_.head_dim);
  k_.product({o_.pairs,
              ds_of(tile, part),
              stride_,
              false,
              packed_.keys + o_.words(part.keys.begin) * d_,
              d_,
              dquery_of(tile, part.rows.begin),
              width,
              part.rows.end - part.rows.begin,
              width,
              o_.words(part.keys.end - part.keys.begin),
              true,
              {},
              o_.pairs});
}

void Task::add_carefully(const Pending& tile, const TileBits& bits) {
  for (int n = 0; n < tile.count; ++n) {
    const Part& part = tile.parts[n];
    careful_product({o_.pairs, o_.pairs, ds_of(tile, part), stride_,
                     bits.bits + part.rows.begin * bits.words + part.keys.begin / 64, bits.words,
                     part.rows.end - part.rows.begin, part.keys.end - part.keys.begin,
                     packed_.keys + o_.words(part.keys.begin) * d_, d_, p_.head_dim,
                     dquery_of(tile, part.rows.begin), padded(p_.head_dim)});
  }
}

/// The key tile before this one that visits query tile i, or -1.
std::int64_t Task::before(std::int64_t h, std::int64_t i) const {
  std::int64_t before = j_ - 1;
  while (before >= 0 && step_.schedule.kind(b_, h, i, before) == TileKind::kSkip) --before;
  return before;
}

/// Waits until the key tile before this one has added its part to a query tile.
void Task::wait_for_turn(const Pending& tile) {
  const std::int64_t turn = before(tile.h, tile.i);
  constexpr int kSpins = 200;  // then let a thread that lost its core run
  for (int spin = 0; progress(tile).load(std::memory_order_acquire) != turn; ++spin) {
    if (spin >= kSpins) std::this_thread::yield();
  }
}

}  // namespace ringattn::cpu
