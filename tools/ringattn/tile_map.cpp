// SPDX-License-Identifier: Apache-2.0
#include "tile_map.h"

#include <algorithm>

#include "memory.h"

namespace ringattn::tool {
namespace {

/// More cells than this on a side are smaller than five pixels: too fine to tell apart.
constexpr std::int64_t kMaxCells = 120;

/// One rank's rows on one axis, with the data that its tiles' kinds depend on.
struct Side {
  Tiling tiling;
  std::vector<std::int32_t> ids;  // of one batch row
  std::vector<std::int64_t> list;
  std::vector<SegmentBounds> bounds;
  std::vector<Range> spans;
  std::int64_t offset = 0;  // on an axis that goes rank by rank

  Side(const Positions& rows, std::int64_t tile, const std::int32_t* row_ids,
       const std::int64_t* positions)
      : tiling{rows, tile, nullptr} {
    for (std::int64_t i = 0; i < rows.size(); ++i) {
      if (row_ids != nullptr) ids.push_back(row_ids[rows(i)]);
      if (positions != nullptr) list.push_back(positions[rows(i)]);
    }
    if (positions != nullptr) {
      tiling.positions = Positions{{{0, rows.size()}, {}}, 1, list.data()};
      spans.resize(static_cast<std::size_t>(tiling.count()));
      host_memory().tile_spans(tiling, spans.data(), {});
      tiling.spans = spans.data();
    }
    if (row_ids != nullptr) {
      bounds.resize(static_cast<std::size_t>(tiling.count()));
      host_memory().segment_bounds(ids.data(), 1, tiling, bounds.data(), {});
    }
  }

  ShardSegments segments() const {
    return ids.empty() ? ShardSegments{} : ShardSegments{ids.data(), bounds.data()};
  }

  Range on_axis(const TileAxis& axis, const Tile& tile) const {
    if (axis.global) return tile.span;
    return {offset + tile.row, offset + tile.row + tile.rows};
  }
};

/// A grid that rank borders fall on: striped layouts would show moire patterns otherwise.
std::vector<std::int64_t> coarse_edges(const TileAxis& axis) {
  std::vector<std::int64_t> edges;
  const auto parts = static_cast<std::int64_t>(axis.parts.size());
  const auto cut = [&edges](Range rows, std::int64_t pieces) {
    for (std::int64_t c = 0; c < pieces; ++c) {
      const std::int64_t edge = rows.begin + chunk_begin(rows.size(), pieces, c);
      if (edges.empty() || edge > edges.back()) edges.push_back(edge);
    }
  };
  if (parts > kMaxCells) {
    cut({0, axis.length}, kMaxCells);
  } else {
    for (const TileAxis::Part& part : axis.parts) cut(part.rows, kMaxCells / parts);
  }
  edges.push_back(axis.length);
  return edges;
}

/// `rows_of(rank)` are the rows as the layout gives them.
template <class RowsOf>
TileAxis make_axis(const Plan& plan, std::int64_t tile, bool global, const RowsOf& rows_of,
                   std::vector<Side>& sides) {
  TileAxis axis;
  axis.global = global;
  axis.tile = tile;
  for (int r = 0; r < plan.world(); ++r) {
    Side& side = sides[static_cast<std::size_t>(r)];
    side.offset = axis.length;
    const Positions rows = rows_of(r);
    for (const Run& run : rows.runs) {
      const std::int64_t begin = global ? run.first : axis.length;
      if (run.count > 0) axis.parts.push_back({r, {begin, begin + run.count}});
      axis.length += run.count;
    }
    axis.tiles += side.tiling.count();
  }
  std::sort(axis.parts.begin(), axis.parts.end(),
            [](const auto& a, const auto& b) { return a.rows.begin < b.rows.begin; });
  if (axis.tiles > kMaxCells) {
    axis.edges = coarse_edges(axis);
    return axis;
  }
  axis.edges.push_back(axis.length);
  for (const Side& side : sides) {
    for (std::int64_t t = 0; t < side.tiling.count(); ++t) {
      axis.edges.push_back(side.on_axis(axis, side.tiling[t]).begin);
    }
  }
  std::sort(axis.edges.begin(), axis.edges.end());
  return axis;
}

/// The first cell that ends after `x`.
std::int64_t cell_of(const TileAxis& axis, std::int64_t x) {
  return std::upper_bound(axis.edges.begin(), axis.edges.end(), x) - axis.edges.begin() - 1;
}

/// Calls use(cell, share of the cell that `rows` covers).
template <class Use>
void for_cells(const TileAxis& axis, Range rows, const Use& use) {
  for (std::int64_t c = cell_of(axis, rows.begin); c < axis.cells(); ++c) {
    const auto i = static_cast<std::size_t>(c);
    const Range cell{axis.edges[i], axis.edges[i + 1]};
    if (cell.begin >= rows.end) break;
    use(c, static_cast<float>(intersect(cell, rows).size()) / static_cast<float>(cell.size()));
  }
}

void add(TileMap& map, Range queries, Range keys, bool full) {
  for_cells(map.queries, queries, [&](std::int64_t q, float q_share) {
    for_cells(map.keys, keys, [&](std::int64_t k, float k_share) {
      TileMap::Cell& cell = map.cells[static_cast<std::size_t>(q * map.keys.cells() + k)];
      (full ? cell.full : cell.masked) += q_share * k_share;
    });
  });
}

/// All tiles of one pair of ranks.
void add_pair(TileMap& map, const PairSchedule& s, const Side& queries, const Side& keys,
              std::int64_t head) {
  TileBits bits;
  const bool interval_only = s.interval_only();
  // Bounds are exact but for rare tiles of a striped layout, which no coarse cell would show.
  const bool quick = interval_only && map.queries.coarse() && map.keys.coarse();
  for (std::int64_t i = 0; i < s.queries.count(); ++i) {
    const Tile tile = s.queries[i];
    const Range rows = queries.on_axis(map.queries, tile);
    const TileRanges ranges = visit(s.mask, tile.span, s.keys);
    for (int r = 0; r < 2; ++r) {
      const Range full = interval_only ? ranges.full[r] : Range{};
      if (!full.empty()) {
        add(map, rows,
            {keys.on_axis(map.keys, s.keys[full.begin]).begin,
             keys.on_axis(map.keys, s.keys[full.end - 1]).end},
            true);
      }
      for (std::int64_t j = ranges.visited[r].begin; j < ranges.visited[r].end; ++j) {
        if (full.contains(j)) {
          j = full.end - 1;
          continue;
        }
        const TileKind kind = quick ? TileKind::kMasked : s.exact_kind(0, head, i, j, bits);
        if (kind == TileKind::kSkip) continue;
        add(map, rows, keys.on_axis(map.keys, s.keys[j]), kind == TileKind::kFull);
      }
    }
  }
}

}  // namespace

TileMap make_tile_map(const Plan& plan, Pass pass, const GlobalData& data, std::int64_t batch,
                      std::int64_t head) {
  const Problem& p = plan.problem();
  const TileShape shape = plan.tiles(pass);
  const auto row = [batch](const std::int32_t* ids, std::int64_t length) {
    return ids == nullptr ? nullptr : ids + batch * length;
  };
  std::vector<Side> queries, keys;
  for (int r = 0; r < plan.world(); ++r) {
    queries.emplace_back(plan.query_rows(r), shape.queries, row(data.q_segment_ids, p.query_seq),
                         data.q_positions);
    keys.emplace_back(plan.key_rows(r), shape.keys, row(data.kv_segment_ids, p.key_seq),
                      data.kv_positions);
  }
  // Moving a Side keeps its vectors' memory, so the tilings that point into it stay valid.
  const bool global = plan.options().layout != Layout::kStriped && data.q_positions == nullptr &&
                      data.kv_positions == nullptr;
  TileMap map;
  map.queries = make_axis(
      plan, shape.queries, global, [&](int r) { return plan.query_rows(r); }, queries);
  map.keys = make_axis(
      plan, shape.keys, global, [&](int r) { return plan.key_rows(r); }, keys);
  map.cells.resize(static_cast<std::size_t>(map.queries.cells() * map.keys.cells()));
  for (const Side& q : queries) {
    for (const Side& k : keys) {
      PairSchedule s;
      s.mask = plan.mask().interval;
      if (plan.mask().bitmap != nullptr) s.bitmap = plan.mask().bitmap->view();
      s.queries = q.tiling;
      s.keys = k.tiling;
      s.query_segments = q.segments();
      s.key_segments = k.segments();
      add_pair(map, s, q, k, head);
    }
  }
  return map;
}

}  // namespace ringattn::tool
