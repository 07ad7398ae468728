// SPDX-License-Identifier: Apache-2.0
// THE definition of which tiles are computed and which of them need masking: mask x positions x
// tile sizes. Nothing here allocates; the interval part runs on hosts and devices alike.
//
//     key tile:   0 ....... begin ... full.begin ...... full.end ... end ....... n
//                     skip      |masked    |no mask needed   |masked      |skip
#pragma once

#include <bit>
#include <cstdint>

#include "bitmap.h"
#include "ringattn/layout.h"
#include "ringattn/mask.h"

namespace ringattn {

/// Rows [row, row + rows) of a shard, and the range of the positions they hold.
struct Tile {
  std::int64_t row = 0;
  std::int64_t rows = 0;
  Range span;
};

RINGATTN_HOST_DEVICE constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return -floor_div(-a, b);
}

/// A shard's rows cut in tiles of at most `size` rows, none of which straddles two runs.
struct Tiling {
  Positions positions;
  std::int64_t size = 1;
  const Range* spans = nullptr;  // per tile, with explicit positions only: see Memory

  RINGATTN_HOST_DEVICE constexpr std::int64_t count() const {
    return ceil_div(positions.runs[0].count, size) + ceil_div(positions.runs[1].count, size);
  }

  RINGATTN_HOST_DEVICE constexpr Tile operator[](std::int64_t t) const {
    const std::int64_t head = ceil_div(positions.runs[0].count, size);
    const int r = t < head ? 0 : 1;
    const std::int64_t begin = (r == 0 ? t : t - head) * size;
    const Run& run = positions.runs[r];
    const std::int64_t rows = run.count - begin < size ? run.count - begin : size;
    Tile tile{(r == 0 ? 0 : positions.runs[0].count) + begin, rows, {}};
    if (positions.list != nullptr) {
      tile.span = spans[t];
    } else {
      const std::int64_t first = run.first + begin * positions.stride;
      tile.span = {first, first + (rows - 1) * positions.stride + 1};
    }
    return tile;
  }
};

/// Key tiles of one query tile, per run of the keys: those in `visited` may hold visible pairs,
/// those in `full` hold nothing else. full is within visited.
struct TileRanges {
  Range visited[2];
  Range full[2];

  RINGATTN_HOST_DEVICE constexpr bool is_full(std::int64_t j) const {
    return full[0].contains(j) || full[1].contains(j);
  }
};

/// The kind of (rows at `queries`, keys at `keys`) by the interval mask: two evaluations.
RINGATTN_HOST_DEVICE constexpr TileKind classify(const IntervalMask& mask, Range queries,
                                                 Range keys) {
  if (queries.empty() || keys.empty()) return TileKind::kSkip;
  const Range first = mask.row(queries.begin);
  const Range last = mask.row(queries.end - 1);
  if (intersect({first.begin, last.end}, keys).empty()) return TileKind::kSkip;
  return Range{last.begin, first.end}.contains(keys) ? TileKind::kFull : TileKind::kMasked;
}

/// Which of the key tiles the queries at positions `queries` visit. Swap the roles and pass
/// mask.transposed() for the backward's question. With explicit positions every tile is
/// "visited" here, and classify() decides.
RINGATTN_HOST_DEVICE constexpr TileRanges visit(const IntervalMask& mask, Range queries,
                                                const Tiling& keys) {
  TileRanges tiles;
  if (queries.empty()) return tiles;
  if (keys.positions.list != nullptr) {
    tiles.visited[0] = {0, keys.count()};
    return tiles;
  }
  const Range first = mask.row(queries.begin);
  const Range last = mask.row(queries.end - 1);
  std::int64_t offset = 0;  // of the run's first tile
  for (int r = 0; r < 2; ++r) {
    const Run& run = keys.positions.runs[r];
    const std::int64_t stride = keys.positions.stride;
    const Range held{run.first, run.first + (run.count - 1) * stride + 1};
    // Positions to indices of the run: the first key at or after p is key ceil((p - first) / s).
    const Range any = intersect(held, {first.begin, last.end});
    const Range all = intersect(held, {last.begin, first.end});
    if (run.count > 0 && !any.empty()) {
      const Range keys_any{ceil_div(any.begin - run.first, stride),
                           ceil_div(any.end - run.first, stride)};
      if (!keys_any.empty()) {
        tiles.visited[r] = {offset + keys_any.begin / keys.size,
                            offset + ceil_div(keys_any.end, keys.size)};
      }
      const Range keys_all{ceil_div(all.begin - run.first, stride),
                           ceil_div(all.end - run.first, stride)};
      if (!all.empty() && !keys_all.empty()) {
        tiles.full[r] = {offset + ceil_div(keys_all.begin, keys.size),
                         offset + (keys_all.end == run.count ? ceil_div(run.count, keys.size)
                                                             : keys_all.end / keys.size)};
        if (tiles.full[r].empty()) tiles.full[r] = {};
      }
    }
    offset += ceil_div(run.count, keys.size);
  }
  return tiles;
}

/// Row i of a run of queries sees rows [i + begin, i + end) of a run of keys, as far as they exist.
struct Band {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// The mask between two runs of one stride, in rows instead of positions. Not for chunks, whose
/// intervals are no band.
RINGATTN_HOST_DEVICE constexpr Band band(const IntervalMask& mask, const Run& queries,
                                         const Run& keys, std::int64_t stride) {
  const Range seen = mask.row(queries.first);
  // Unbounded sides stay about as far away as they are, and no later sum overflows.
  constexpr std::int64_t kFar = INT64_MAX / 4;
  return {
      seen.begin == INT64_MIN ? -kFar : ceil_div(saturating_add(seen.begin, -keys.first), stride),
      seen.end == INT64_MAX ? kFar : ceil_div(saturating_add(seen.end, -keys.first), stride)};
}

/// The non-negative segment ids of a tile's rows, as a range, and whether any row is padding.
struct alignas(16) SegmentBounds {  // so that a GPU loads it at once
  std::int32_t lo = INT32_MAX;
  std::int32_t hi = -1;
  bool padding = false;

  RINGATTN_HOST_DEVICE constexpr void add(std::int32_t id) {
    if (id < 0) {
      padding = true;
    } else {
      lo = id < lo ? id : lo;
      hi = id > hi ? id : hi;
    }
  }
};

RINGATTN_HOST_DEVICE constexpr TileKind classify(const SegmentBounds& q, const SegmentBounds& k) {
  if (q.hi < k.lo || k.hi < q.lo || q.hi < 0 || k.hi < 0) return TileKind::kSkip;
  const bool one = q.lo == q.hi && k.lo == k.hi && !q.padding && !k.padding;
  return one ? TileKind::kFull : TileKind::kMasked;
}

/// Segment ids of a shard, contiguous [B, rows], and their bounds per tile, [B, tiles].
struct ShardSegments {
  const std::int32_t* ids = nullptr;  // null: no segments
  const SegmentBounds* bounds = nullptr;
};

/// The bounds of n segment ids, and the range of n positions.
constexpr SegmentBounds bounds_of(const std::int32_t* ids, std::int64_t n) {
  SegmentBounds bounds;
  for (std::int64_t i = 0; i < n; ++i) bounds.add(ids[i]);
  return bounds;
}
constexpr Range span_of(const std::int64_t* positions, std::int64_t n) {
  Range span;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t x = positions[i];
    if (i == 0 || x < span.begin) span.begin = x;
    if (i == 0 || x >= span.end) span.end = x + 1;
  }
  return span;
}

/// The kind of a tile that two conditions decide.
RINGATTN_HOST_DEVICE constexpr TileKind both(TileKind a, TileKind b) {
  if (a == TileKind::kSkip || b == TileKind::kSkip) return TileKind::kSkip;
  return a == TileKind::kFull ? b : TileKind::kMasked;
}

/// Which rows of key tile `tile` hold positions within `visible`, as [begin, end) of the tile.
/// Not for explicit positions, which are in no order.
RINGATTN_HOST_DEVICE constexpr Range rows_within(Range visible, const Positions& keys,
                                                 const Tile& tile) {
  const Range seen = intersect(visible, tile.span);
  if (seen.empty()) return {};
  return {ceil_div(seen.begin - tile.span.begin, keys.stride),
          ceil_div(seen.end - tile.span.begin, keys.stride)};
}

/// Bits of one tile: row i, key j is bit j % 64 of bits[i * words + j / 64].
struct TileBits {
  static constexpr std::int64_t kMaxRows = 128;
  static constexpr std::int64_t kMaxKeys = 512;

  std::int64_t words = 0;  // per row
  std::int64_t pairs = 0;  // visible ones
  std::uint64_t bits[kMaxRows * kMaxKeys / 64];

  bool visible(std::int64_t i, std::int64_t j) const {
    return (bits[i * words + j / 64] >> (j % 64) & 1) != 0;
  }
};

/// Everything that decides which pairs of one (query shard, key shard) pair are visible. Trivially
/// copyable: with pointers into device memory it is a kernel's argument.
struct PairSchedule {
  IntervalMask mask;
  BitmapView bitmap;  // not present: everything
  Tiling queries;
  Tiling keys;
  ShardSegments query_segments;
  ShardSegments key_segments;

  /// No more than the interval mask decides.
  RINGATTN_HOST_DEVICE constexpr bool interval_only() const {
    return !bitmap.present() && query_segments.ids == nullptr;
  }

  /// Cheap: from the tiles' bounds. kMasked may turn out empty or full in fill().
  RINGATTN_HOST_DEVICE constexpr TileKind kind(std::int64_t batch, std::int64_t head,
                                               std::int64_t q_tile, std::int64_t k_tile) const {
    const Tile q = queries[q_tile];
    const Tile k = keys[k_tile];
    TileKind result = classify(mask, q.span, k.span);
    if (result != TileKind::kSkip && query_segments.ids != nullptr) {
      result = both(result, classify(query_segments.bounds[batch * queries.count() + q_tile],
                                     key_segments.bounds[batch * keys.count() + k_tile]));
    }
    if (result != TileKind::kSkip && bitmap.present()) {
      result = both(result, bitmap.kind(head, q.span, k.span));
    }
    return result;
  }

  /// Does row i of the queries see row j of the keys?
  RINGATTN_HOST_DEVICE constexpr bool visible(std::int64_t batch, std::int64_t head, std::int64_t i,
                                              std::int64_t j) const {
    const std::int64_t q = queries.positions(i);
    const std::int64_t k = keys.positions(j);
    if (!mask.visible(q, k)) return false;
    if (bitmap.present() && !bitmap.visible(head, q, k)) return false;
    return query_segments.ids == nullptr ||
           same_segment(query_segments.ids[batch * queries.positions.size() + i],
                        key_segments.ids[batch * keys.positions.size() + j]);
  }

  /// Exact: the bits of a tile of at most kMaxRows x kMaxKeys.
  void fill(std::int64_t batch, std::int64_t head, std::int64_t q_tile, std::int64_t k_tile,
            TileBits& bits) const;

  /// The kind by fill(): kSkip, kMasked or kFull, exactly. Fills `bits` if the bounds say kMasked.
  TileKind exact_kind(std::int64_t batch, std::int64_t head, std::int64_t q_tile,
                      std::int64_t k_tile, TileBits& bits) const;

  /// Is any pair visible? Exact.
  bool live(std::int64_t batch, std::int64_t heads) const;
};

}  // namespace ringattn
