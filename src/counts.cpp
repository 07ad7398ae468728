// SPDX-License-Identifier: Apache-2.0
#include "counts.h"

#include <algorithm>

namespace ringattn {
namespace {

/// Tiles [begin, end) of one query tile that are full by the interval mask alone: O(1).
void count_full_run(const PairSchedule& s, std::int64_t q_rows, Range tiles, PassCounts& counts) {
  if (tiles.empty()) return;
  const Tile first = s.keys[tiles.begin];
  const Tile last = s.keys[tiles.end - 1];
  counts.tiles.visited += tiles.size();
  counts.tiles.full += tiles.size();
  counts.pairs += q_rows * (last.row + last.rows - first.row);
}

void count_one(const PairSchedule& s, std::int64_t b, std::int64_t h, std::int64_t i,
               std::int64_t j, TileBits& bits, PassCounts& counts) {
  const TileKind kind = s.exact_kind(b, h, i, j, bits);
  if (kind == TileKind::kSkip) return;
  const std::int64_t all = s.queries[i].rows * s.keys[j].rows;
  counts.tiles.visited += 1;
  counts.tiles.full += kind == TileKind::kFull ? 1 : 0;
  counts.pairs += kind == TileKind::kFull ? all : bits.pairs;
}

/// One (batch row, head).
PassCounts count_plane(const PairSchedule& s, std::int64_t b, std::int64_t h) {
  PassCounts counts;
  TileBits bits;
  const bool interval_only = s.interval_only();
  for (std::int64_t i = 0; i < s.queries.count(); ++i) {
    const Tile q = s.queries[i];
    const TileRanges ranges = visit(s.mask, q.span, s.keys);
    for (int r = 0; r < 2; ++r) {
      const Range full = interval_only ? ranges.full[r] : Range{};
      if (interval_only) count_full_run(s, q.rows, full, counts);
      for (std::int64_t j = ranges.visited[r].begin; j < ranges.visited[r].end; ++j) {
        if (full.contains(j)) {
          j = full.end - 1;
        } else {
          count_one(s, b, h, i, j, bits, counts);
        }
      }
    }
  }
  counts.tiles.skipped = s.queries.count() * s.keys.count() - counts.tiles.visited;
  return counts;
}

}  // namespace

std::int64_t flops(const Problem& problem, Pass pass, std::int64_t pairs) {
  const std::int64_t d = problem.head_dim;
  const std::int64_t v = problem.value_dim;
  return pairs * (pass == Pass::kForward ? 2 * (d + v) : 6 * d + 4 * v);
}

PassCounts count_tiles(const PairSchedule& s, const Problem& p, Pass pass) {
  const bool per_batch = s.query_segments.ids != nullptr;
  const std::int64_t planes = s.bitmap.present() ? s.bitmap.heads : 1;
  const std::int64_t rows = per_batch ? p.batch : std::min<std::int64_t>(p.batch, 1);
  PassCounts total;
  for (std::int64_t b = 0; b < rows; ++b) {
    for (std::int64_t h = 0; h < planes; ++h) total += count_plane(s, b, h);
  }
  const std::int64_t repeat = (per_batch ? 1 : p.batch) * (p.query_heads / planes);
  total.tiles.visited *= repeat;
  total.tiles.full *= repeat;
  total.tiles.skipped *= repeat;
  total.pairs *= repeat;
  total.flops = flops(p, pass, total.pairs);
  return total;
}

PassCounts& operator+=(PassCounts& sum, const PassCounts& part) {
  sum.hops += part.hops;
  sum.bytes += part.bytes;
  sum.tiles.visited += part.tiles.visited;
  sum.tiles.full += part.tiles.full;
  sum.tiles.skipped += part.tiles.skipped;
  sum.pairs += part.pairs;
  sum.flops += part.flops;
  return sum;
}

}  // namespace ringattn
