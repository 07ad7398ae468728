// SPDX-License-Identifier: Apache-2.0
// Which of 32 pairs of a masked tile are visible, as the bits of a word: the schedule's answers,
// asked from the device. Every kernel masks by these words.
#pragma once

#include "schedule.h"

namespace ringattn::cuda {

/// Bits [begin, end) of a word.
template <class Index>
__device__ std::uint32_t bit_range(Index begin, Index end) {
  // Not clamped to [0, 32] and compared with 32: ptxas 13.0 makes wrong words of that for int.
  const Index lo = begin < 0 ? 0 : begin;
  const Index hi = end > 32 ? 32 : end;
  return lo < hi ? ~0U >> (32 - static_cast<int>(hi)) & ~0U << static_cast<int>(lo) : 0;
}

/// Row `own` of one side against the rows [first, first + columns) of a tile of the other, at most
/// 32: bit c says whether they see each other. kKeys: the tile is of keys.
template <bool kKeys>
__device__ std::uint32_t visible_word(const PairSchedule& s, int batch, int head, std::int64_t own,
                                      const Tile& tile, int first, int columns) {
  const Positions& mine = kKeys ? s.queries.positions : s.keys.positions;
  const Positions& others = kKeys ? s.keys.positions : s.queries.positions;
  const std::int64_t row = tile.row + first;
  const std::int64_t position = mine(own);
  std::uint32_t word = bit_range(0, columns);
  // Asked of all columns, hidden ones too: loads that wait for nothing overlap.
  const auto keep = [&](const auto& visible) {
    if (word == 0) return;
    std::uint32_t seen = 0;
#pragma unroll 4
    for (int c = 0; c < 32; ++c) {
      if (c < columns && visible(row + c)) seen |= 1U << c;
    }
    word &= seen;
  };

  const Range seen = (kKeys ? s.mask : s.mask.transposed()).row(position);
  if (others.list == nullptr) {
    const Range rows = rows_within(seen, others, tile);
    word &= bit_range(rows.begin - first, rows.end - first);
  } else {
    keep([&](std::int64_t other) { return seen.contains(others.list[other]); });
  }
  if (s.query_segments.ids != nullptr) {
    const std::int32_t* ids = (kKeys ? s.query_segments : s.key_segments).ids;
    const std::int32_t* theirs = (kKeys ? s.key_segments : s.query_segments).ids;
    const std::int32_t id = ids[batch * mine.size() + own];
    theirs += batch * others.size();
    keep([&](std::int64_t other) { return same_segment(id, theirs[other]); });
  }
  if (s.bitmap.present()) {
    keep([&](std::int64_t other) {
      return kKeys ? s.bitmap.visible(head, position, others(other))
                   : s.bitmap.visible(head, others(other), position);
    });
  }
  return word;
}

}  // namespace ringattn::cuda
