// SPDX-License-Identifier: Apache-2.0
#include "schedule.h"

#include <algorithm>

namespace ringattn {
namespace {

/// Sets bits [begin, end) of a row.
void set_bits(std::uint64_t* row, std::int64_t begin, std::int64_t end) {
  for (std::int64_t w = begin / 64; w * 64 < end; ++w) {
    const std::int64_t lo = std::max<std::int64_t>(begin - w * 64, 0);
    const std::int64_t hi = std::min<std::int64_t>(end - w * 64, 64);
    const std::uint64_t upper = hi == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << hi) - 1;
    row[w] |= upper & ~std::uint64_t{0} << lo;
  }
}

/// The interval part of one row: keys `tile` of a shard at `keys`.
void fill_interval(Range visible, const Positions& keys, const Tile& tile, std::uint64_t* row) {
  if (keys.list == nullptr) {
    const Range rows = rows_within(visible, keys, tile);
    if (!rows.empty()) set_bits(row, rows.begin, rows.end);
    return;
  }
  for (std::int64_t j = 0; j < tile.rows; ++j) {
    const bool sees = visible.contains(keys.list[tile.row + j]);
    row[j / 64] |= static_cast<std::uint64_t>(sees) << (j % 64);
  }
}

void mask_segments(std::int32_t q, const std::int32_t* keys, std::int64_t count,
                   std::uint64_t* row) {
  for (std::int64_t w = 0; w * 64 < count; ++w) {
    const std::int64_t n = std::min<std::int64_t>(count - w * 64, 64);
    std::uint64_t word = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      word |= static_cast<std::uint64_t>(same_segment(q, keys[w * 64 + j])) << j;
    }
    row[w] &= word;
  }
}

void mask_bitmap(const BitmapView& bitmap, std::int64_t head, std::int64_t q, const Positions& keys,
                 const Tile& tile, std::uint64_t* row) {
  const bool consecutive = keys.list == nullptr && keys.stride == 1;
  for (std::int64_t w = 0; w * 64 < tile.rows; ++w) {
    if (row[w] == 0) continue;
    if (consecutive) {
      row[w] &= bitmap.row(head, q, tile.span.begin + w * 64);
      continue;
    }
    const std::int64_t n = std::min<std::int64_t>(tile.rows - w * 64, 64);
    std::uint64_t word = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      const std::int64_t k = keys(tile.row + w * 64 + j);
      word |= static_cast<std::uint64_t>(bitmap.visible(head, q, k)) << j;
    }
    row[w] &= word;
  }
}

}  // namespace

void PairSchedule::fill(std::int64_t batch, std::int64_t head, std::int64_t q_tile,
                        std::int64_t k_tile, TileBits& bits) const {
  const Tile q = queries[q_tile];
  const Tile k = keys[k_tile];
  bits.words = ceil_div(k.rows, 64);
  bits.pairs = 0;
  std::fill_n(bits.bits, q.rows * bits.words, std::uint64_t{0});
  for (std::int64_t i = 0; i < q.rows; ++i) {
    std::uint64_t* row = bits.bits + i * bits.words;
    const std::int64_t position = queries.positions(q.row + i);
    fill_interval(mask.row(position), keys.positions, k, row);
    if (query_segments.ids != nullptr) {
      const std::int64_t q_row = batch * queries.positions.size() + q.row + i;
      const std::int64_t k_row = batch * keys.positions.size() + k.row;
      mask_segments(query_segments.ids[q_row], key_segments.ids + k_row, k.rows, row);
    }
    if (bitmap.present()) mask_bitmap(bitmap, head, position, keys.positions, k, row);
    for (std::int64_t w = 0; w < bits.words; ++w) bits.pairs += std::popcount(row[w]);
  }
}

TileKind PairSchedule::exact_kind(std::int64_t batch, std::int64_t head, std::int64_t q_tile,
                                  std::int64_t k_tile, TileBits& bits) const {
  const TileKind quick = kind(batch, head, q_tile, k_tile);
  if (quick != TileKind::kMasked) return quick;
  fill(batch, head, q_tile, k_tile, bits);
  if (bits.pairs == 0) return TileKind::kSkip;
  const std::int64_t all = queries[q_tile].rows * keys[k_tile].rows;
  return bits.pairs == all ? TileKind::kFull : TileKind::kMasked;
}

bool PairSchedule::live(std::int64_t batch, std::int64_t heads) const {
  const std::int64_t rows =
      query_segments.ids == nullptr ? std::min<std::int64_t>(batch, 1) : batch;
  const std::int64_t planes = bitmap.present() ? std::min(heads, bitmap.heads) : 1;
  TileBits bits;
  for (std::int64_t b = 0; b < rows; ++b) {
    for (std::int64_t h = 0; h < planes; ++h) {
      for (std::int64_t i = 0; i < queries.count(); ++i) {
        const TileRanges ranges = visit(mask, queries[i].span, keys);
        for (const Range& run : ranges.visited) {
          for (std::int64_t j = run.begin; j < run.end; ++j) {
            if (exact_kind(b, h, i, j, bits) != TileKind::kSkip) return true;
          }
        }
      }
    }
  }
  return false;
}

}  // namespace ringattn
