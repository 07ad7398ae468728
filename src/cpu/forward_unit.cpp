// SPDX-License-Identifier: Apache-2.0
#include "cpu/forward_unit.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "merge.h"

namespace ringattn::cpu {
Ahead PlaneKeys::ahead(std::int64_t j) const {
  const PackedTile next = tile(j);
  const std::int64_t bytes = (next.values - next.keys_t) * std::int64_t{sizeof(float)};
  return {next.keys_t, bytes, next.values, static_cast<std::int64_t>(block.tile_bytes()) - bytes};
}

Ahead Unit::ahead() const {
  const std::int64_t query = tile_.rows * row_stride(o_.words(p_.head_dim)) * 4;
  return {x_.query, query, x_.acc, tile_.rows * width_ * 4};
}

Unit::Unit(const ForwardStep& step, const TileScratch& scratch, const UnitScratch& own,
           const Operands& operands, const PlaneKeys& keys, std::int64_t bh, std::int64_t i,
           bool packed)
    : step_(step),
      p_(step.plan.problem()),
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
      empty_(step.first) {
  if (!packed) load_query();
  if (step.first) {
    std::fill_n(x_.max, tile_.rows, -kInfinity<float>);
    std::fill_n(x_.sum, tile_.rows, 0.0F);
  }
}

void Unit::load_query() {
  const ConstTensorView& q = step_.query;
  const auto* src =
      static_cast<const std::byte*>(q.data) + offset(q, b_, tile_.row, h_) * size_of(q.dtype);
  o_.left({false, o_.format, src, q.stride(1), tile_.rows, p_.head_dim, x_.query,
           row_stride(o_.words(p_.head_dim))});
}

void Unit::attend(std::int64_t j, const Ahead& ahead, PassCounts& counts) {
  TileBits bits;
  const TileKind kind = step_.schedule.exact_kind(b_, h_, i_, j, bits);
  if (kind == TileKind::kSkip) return;
  const Tile keys = step_.schedule.keys[j];
  const bool masked = kind == TileKind::kMasked;
  counts.tiles.visited += 1;
  counts.tiles.full += masked ? 0 : 1;
  counts.pairs += masked ? bits.pairs : tile_.rows * keys.rows;
  if (!masked) {
    attend_rows(j, {0, tile_.rows}, {0, keys.rows}, nullptr, ahead);
    empty_ = false;
    return;
  }
  clear();
  for (std::int64_t r = 0; r < tile_.rows; r += kMaskedRows) {
    const Range rows{r, std::min(r + kMaskedRows, tile_.rows)};
    const Range seen = visible_keys(bits, rows);
    if (!seen.empty()) attend_rows(j, rows, seen, &bits, {});
  }
}

/// Zeros to add to, if no product has written all rows of acc yet.
void Unit::clear() {
  if (empty_) std::fill_n(x_.acc, tile_.rows * width_, 0.0F);
  empty_ = false;
}

/// Rows of this tile against keys of tile j. bits: of the whole tile, or null.
void Unit::attend_rows(std::int64_t j, Range rows, Range keys, const TileBits* bits,
                       const Ahead& ahead) {
  const PackedTile tile = keys_.tile(j);
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
                       tile.keys_t + keys.begin,
                       stride,
                       s_.s,
                       stride,
                       m,
                       padded(count),
                       o_.words(p_.head_dim),
                       false,
                       ahead.first,
                       ahead.first_bytes};
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
  const float* values = tile.values + o_.words(keys.begin) * value_row;
  if (bits != nullptr && !tile.finite) {
    careful_product({o_.pairs, s_.s, stride, seen, words, m, count, values, value_row, p_.value_dim,
                     acc, width_});
  } else {
    k_.product({o_.pairs, s_.s, stride, false, values, value_row, acc, width_, m, width_,
                o_.words(count), !empty_, ahead.second, ahead.second_bytes});
  }
}

void Unit::finish() {
  clear();
  if (step_.last) finish_rows();
}

void Unit::finish_rows() {
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

}  // namespace ringattn::cpu
