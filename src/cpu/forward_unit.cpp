// SPDX-License-Identifier: Apache-2.0
#include "cpu/forward_unit.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "merge.h"

namespace ringattn::cpu {

void ask_for_query(const ForwardStep& step, std::int64_t bh, std::int64_t i, Ahead& to) {
  const std::int64_t heads = step.plan.problem().query_heads;
  const Tile tile = step.schedule.queries[i];
  to.first[0] = rows_of(step.query, bh / heads, tile.row, bh % heads, tile.rows);
}

void ask_for_keys(const ForwardStep& step, std::int64_t plane, std::int64_t j, Ahead& to) {
  const std::int64_t heads = step.plan.problem().kv_heads;
  const Tile tile = step.schedule.keys[j];
  to.first[1] = rows_of(step.key, plane / heads, tile.row, plane % heads, tile.rows);
  to.second[1] = rows_of(step.value, plane / heads, tile.row, plane % heads, tile.rows);
}

PackedTile PlaneKeys::tile(std::int64_t j) const {
  PackedTile tile = block.tile(at, first + j);
  if (values_in_place) {
    const std::int64_t heads = step.plan.problem().kv_heads;
    const Tile rows = step.schedule.keys[j];
    tile.values = static_cast<const float*>(
        rows_of(step.value, plane / heads, rows.row, plane % heads, rows.rows).first);
    tile.values_row = step.value.stride(1);
  }
  return tile;
}

void PlaneKeys::ask_for(std::int64_t j, Ahead& to) const {
  if (lacks(j)) return ask_for_keys(step, plane, j, to);
  const PackedTile next = tile(j);
  const std::int64_t bytes = (next.values - next.keys_t) * std::int64_t{sizeof(float)};
  to.first[1] = {next.keys_t, bytes, 1};
  to.second[1] = {next.values, static_cast<std::int64_t>(block.tile_bytes()) - bytes, 1};
}

Ahead Unit::ahead() const {
  Ahead to;
  if (x_.query == nullptr) {
    to.first[0] = rows_of(step_.query, b_, tile_.row, h_, tile_.rows);
  } else {
    to.first[0] = {x_.query, tile_.rows * query_row_ * 4, 1};
  }
  to.second[0] = {x_.acc, tile_.rows * width_ * 4, 1};
  return to;
}

void Unit::ask_for_rows(Ahead& to) const {
  to.second[0] = rows_of(step_.out, b_, tile_.row, h_, tile_.rows);
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
      split_(operands.pairs && step.with_lse),
      b_(bh / p_.query_heads),
      h_(bh % p_.query_heads),
      tile_(step.schedule.queries[i]),
      keys_(keys),
      i_(i),
      width_(padded(p_.value_dim)),
      empty_(step.first) {
  load_query(packed);
  if (step.first) {
    std::fill_n(x_.max, tile_.rows, -kInfinity<float>);
    std::fill_n(x_.sum, tile_.rows, 0.0F);
    if (x_.rounded != nullptr) std::fill_n(x_.rounded, tile_.rows, 0.0F);
  }
}

void Unit::load_query(bool packed) {
  const void* rows = rows_of(step_.query, b_, tile_.row, h_, tile_.rows).first;
  const std::int64_t row = step_.query.stride(1);
  if (x_.query == nullptr) {
    query_ = static_cast<const float*>(rows);
    query_row_ = row;
    return;
  }
  query_ = x_.query;
  query_row_ = row_stride(o_.words(p_.head_dim));
  if (packed) return;
  o_.left({false, o_.format, rows, row, tile_.rows, p_.head_dim, x_.query, query_row_});
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
    if (!seen.empty()) attend_rows(j, rows, seen, &bits, r == 0 ? ahead : Ahead{});
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
  const std::int64_t m = rows.end - rows.begin;
  const std::int64_t count = keys.end - keys.begin;
  const std::int64_t words = bits ? bits->words : 0;
  const std::uint64_t* seen = bits ? bits->bits + rows.begin * words + keys.begin / 64 : nullptr;
  float* acc = x_.acc + rows.begin * width_;
  const Product scores{o_.pairs,
                       query_ + rows.begin * query_row_,
                       query_row_,
                       false,
                       tile.keys_t + keys.begin,
                       stride,
                       s_.s,
                       stride,
                       m,
                       padded(count),
                       o_.words(p_.head_dim),
                       false,
                       {ahead.first[0], ahead.first[1]}};
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
                            s_.factor,
                            o_.pairs ? x_.rounded + rows.begin : nullptr,
                            split_};
  k_.product(scores);
  const Trial trial = k_.softmax_again(weights);
  if (trial != Trial::kDone) {
    if (trial == Trial::kSpoilt) k_.product(scores);
    k_.softmax(weights);
    if (!empty_) k_.scale_rows(acc, width_, m, width_, s_.factor);
  }
  const float* values = tile.values + o_.words(keys.begin) * tile.values_row;
  if ((bits != nullptr || split_) && !tile.finite) {
    clear();
    careful_product({o_.pairs, split_, s_.s, stride, seen, words, m, count, values, tile.values_row,
                     p_.value_dim, acc, width_});
  } else {
    k_.product({o_.pairs,
                s_.s,
                stride,
                false,
                values,
                tile.values_row,
                acc,
                width_,
                m,
                width_,
                o_.words(count),
                !empty_,
                {ahead.second[0], ahead.second[1]},
                split_});
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
  float lse[TileBits::kMaxRows];
  // Apart from the rows of out: a result that is read back would wait for their cache lines.
  const float* weights = o_.pairs ? x_.rounded : x_.sum;
  if (sink != -kInfinity<float> ||
      !k_.finish({x_.max, x_.sum, tile_.rows, s_.factor, lse, weights})) {
    for (std::int64_t r = 0; r < tile_.rows; ++r) {
      const auto result = ringattn::finish(x_.max[r] * kLn2, x_.sum[r], sink);
      if (result.zero) std::fill_n(x_.acc + r * width_, p_.value_dim, 0.0F);
      s_.factor[r] = result.zero ? 1.0F : result.factor;
      if (o_.pairs && !result.zero) s_.factor[r] *= x_.sum[r] / weights[r];
      lse[r] = result.lse;
    }
  }
  if (step_.lse.present()) {
    for (std::int64_t r = 0; r < tile_.rows; ++r) {
      const ptrdiff_t at = b_ * step_.lse.stride(0) + h_ * step_.lse.stride(1) +
                           (tile_.row + r) * step_.lse.stride(2);
      static_cast<float*>(step_.lse.data)[at] = lse[r];
    }
  }
  k_.narrow({format_of(step_.out.dtype), x_.acc, width_, tile_.rows, p_.value_dim, s_.factor, 1,
             element(step_.out, offset(step_.out, b_, tile_.row, h_)), step_.out.stride(1)});
}

}  // namespace ringattn::cpu
