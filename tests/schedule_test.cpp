// SPDX-License-Identifier: Apache-2.0
// The schedule against brute force: thousands of random masks, layouts and tile sizes.
#include "schedule.h"
#include "memory.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "counts.h"

namespace ringattn {
namespace {

/// One random pair of shards, with everything that can decide visibility.
struct Pair {
  Mask mask;
  CompiledMask compiled;
  std::int64_t batch = 2, heads = 2, sq = 0, sk = 0;
  std::vector<std::int32_t> q_ids, k_ids;
  std::vector<std::int64_t> q_list, k_list;
  std::vector<SegmentBounds> q_bounds, k_bounds;
  std::vector<Range> q_spans, k_spans;
  PairSchedule schedule;

  explicit Pair(std::mt19937& random);
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;

  bool visible(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    if (!mask(h, schedule.queries.positions(i), schedule.keys.positions(j))) return false;
    if (q_ids.empty()) return true;
    return same_segment(q_ids[static_cast<std::size_t>(b * schedule.queries.positions.size() + i)],
                        k_ids[static_cast<std::size_t>(b * schedule.keys.positions.size() + j)]);
  }

 private:
  void choose_mask(std::mt19937& random);
  void choose_rows(std::mt19937& random);
  void add_segments(std::mt19937& random);
  void add_lists(std::mt19937& random);
};

Pair::Pair(std::mt19937& random) {
  sq = 1 + random() % 90;
  sk = random() % 3 == 0 ? sq : 1 + random() % 90;
  choose_mask(random);
  choose_rows(random);
  if (random() % 5 == 0) add_lists(random);
  if (random() % 3 == 0) add_segments(random);
}

void Pair::choose_mask(std::mt19937& random) {
  if (random() % 2 == 0) mask = mask & Mask::causal();
  if (random() % 2 == 0) mask = mask & Mask::window(random() % 20, random() % 20);
  if (random() % 3 == 0) mask = mask & Mask::chunk(1 + random() % 40);
  if (random() % 4 == 0) {
    std::vector<std::uint8_t> bits(static_cast<std::size_t>(heads * sq * sk));
    for (auto& b : bits) b = random() % 8 == 0 ? 1 : 0;
    const Mask dense = Mask::dense(bits, heads, sq, sk);
    mask = random() % 2 == 0 ? mask & dense : mask | dense;
  }
  compiled = compile(mask, heads, sq, sk);
  schedule.mask = compiled.interval;
  if (compiled.bitmap != nullptr) schedule.bitmap = compiled.bitmap->view();
}

void Pair::choose_rows(std::mt19937& random) {
  const auto layout = static_cast<Layout>(random() % 3);
  const std::int64_t world = 1 + random() % 6;
  schedule.queries = {positions(layout, sq, world, random() % world),
                      static_cast<std::int64_t>(1 + random() % 17), nullptr};
  schedule.keys = {positions(layout, sk, world, random() % world),
                   static_cast<std::int64_t>(1 + random() % 33), nullptr};
}

void Pair::add_lists(std::mt19937& random) {
  const auto fill = [&](Tiling& tiles, std::vector<std::int64_t>& list, std::vector<Range>& spans,
                        std::int64_t length) {
    for (std::int64_t i = 0; i < tiles.positions.size(); ++i) list.push_back(random() % length);
    tiles.positions = Positions{{{0, tiles.positions.size()}, {}}, 1, list.data()};
    spans.resize(static_cast<std::size_t>(tiles.count()));
    host_memory().tile_spans(tiles, spans.data(), {});
    tiles.spans = spans.data();
  };
  fill(schedule.queries, q_list, q_spans, sq);
  fill(schedule.keys, k_list, k_spans, sk);
}

void Pair::add_segments(std::mt19937& random) {
  const auto fill = [&](const Tiling& tiles, std::vector<std::int32_t>& ids,
                        std::vector<SegmentBounds>& bounds, ShardSegments& segments) {
    std::int32_t id = -1;
    for (std::int64_t i = 0; i < batch * tiles.positions.size(); ++i) {
      if (random() % 9 == 0) id = static_cast<std::int32_t>(random() % 4) - 1;
      ids.push_back(id);
    }
    bounds.resize(static_cast<std::size_t>(batch * tiles.count()));
    host_memory().segment_bounds(ids.data(), batch, tiles, bounds.data(), {});
    segments = {ids.data(), bounds.data()};
  };
  if (schedule.queries.positions.size() == 0 || schedule.keys.positions.size() == 0) return;
  fill(schedule.queries, q_ids, q_bounds, schedule.query_segments);
  fill(schedule.keys, k_ids, k_bounds, schedule.key_segments);
}

/// Visible pairs of a tile, by looking at every one.
std::int64_t brute_force(const Pair& p, std::int64_t b, std::int64_t h, const Tile& q,
                         const Tile& k) {
  std::int64_t pairs = 0;
  for (std::int64_t i = q.row; i < q.row + q.rows; ++i) {
    for (std::int64_t j = k.row; j < k.row + k.rows; ++j) pairs += p.visible(b, h, i, j) ? 1 : 0;
  }
  return pairs;
}

void expect_tile(const Pair& p, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j,
                 PassCounts& counts) {
  const PairSchedule& s = p.schedule;
  const Tile q = s.queries[i];
  const Tile k = s.keys[j];
  const std::int64_t pairs = brute_force(p, b, h, q, k);
  TileBits bits;
  const TileKind kind = s.exact_kind(b, h, i, j, bits);
  ASSERT_EQ(kind == TileKind::kSkip, pairs == 0);
  ASSERT_EQ(kind == TileKind::kFull, pairs == q.rows * k.rows && pairs > 0);
  const TileKind quick = s.kind(b, h, i, j);
  if (quick == TileKind::kSkip) {
    ASSERT_EQ(pairs, 0);
  }
  if (quick == TileKind::kFull) {
    ASSERT_EQ(pairs, q.rows * k.rows);
  }
  s.fill(b, h, i, j, bits);
  ASSERT_EQ(bits.pairs, pairs);
  for (std::int64_t r = 0; r < q.rows; ++r) {
    for (std::int64_t c = 0; c < k.rows; ++c) {
      ASSERT_EQ(bits.visible(r, c), p.visible(b, h, q.row + r, k.row + c));
    }
  }
  counts.pairs += pairs;
  counts.tiles.visited += pairs > 0 ? 1 : 0;
  counts.tiles.full += kind == TileKind::kFull ? 1 : 0;
  counts.tiles.skipped += pairs > 0 ? 0 : 1;
}

TEST(Schedule, EqualsBruteForceForThousandsOfRandomMasks) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 3000; ++trial) {
    const Pair p(random);
    const PairSchedule& s = p.schedule;
    PassCounts counts;
    for (std::int64_t b = 0; b < p.batch; ++b) {
      for (std::int64_t h = 0; h < p.heads; ++h) {
        for (std::int64_t i = 0; i < s.queries.count(); ++i) {
          for (std::int64_t j = 0; j < s.keys.count(); ++j) {
            expect_tile(p, b, h, i, j, counts);
            if (HasFatalFailure()) FAIL() << "trial " << trial << " mask " << p.mask.to_string();
          }
        }
      }
    }
    Problem problem;
    problem.batch = p.batch;
    problem.query_heads = p.heads;
    problem.head_dim = problem.value_dim = 1;
    const PassCounts counted = count_tiles(s, problem, Pass::kForward);
    ASSERT_EQ(counted.tiles, counts.tiles) << "trial " << trial << " " << p.mask.to_string();
    ASSERT_EQ(counted.pairs, counts.pairs);
    ASSERT_EQ(s.live(p.batch, p.heads), counts.pairs > 0);
  }
}

TEST(Schedule, VisitsEveryTileWithAVisiblePairBothWays) {
  std::mt19937 random(8);
  for (int trial = 0; trial < 2000; ++trial) {
    const Pair p(random);
    const PairSchedule& s = p.schedule;
    const bool exact = s.queries.positions.stride == 1 && s.queries.positions.list == nullptr;
    for (std::int64_t i = 0; i < s.queries.count(); ++i) {
      const TileRanges row = visit(s.mask, s.queries[i].span, s.keys);
      for (std::int64_t j = 0; j < s.keys.count(); ++j) {
        const TileRanges column = visit(s.mask.transposed(), s.keys[j].span, s.queries);
        const TileKind kind = classify(s.mask, s.queries[i].span, s.keys[j].span);
        const bool in_row = row.visited[0].contains(j) || row.visited[1].contains(j);
        const bool in_column = column.visited[0].contains(i) || column.visited[1].contains(i);
        if (s.interval_only()) {
          const bool seen = brute_force(p, 0, 0, s.queries[i], s.keys[j]) > 0;
          if (seen) {
            ASSERT_TRUE(in_row && in_column) << p.mask.to_string();
          }
        }
        if (row.is_full(j)) {
          ASSERT_EQ(kind, TileKind::kFull);
        }
        if (exact) {
          // The order of dQ in the backward rests on this.
          ASSERT_EQ(in_row, kind != TileKind::kSkip);
          ASSERT_EQ(in_column, kind != TileKind::kSkip);
          ASSERT_EQ(row.is_full(j), kind == TileKind::kFull);
        }
      }
    }
  }
}

TEST(Schedule, ABandHoldsExactlyWhatARowSees) {
  std::mt19937 random(7);
  for (int n = 0; n < 3000; ++n) {
    IntervalMask mask;
    if (random() % 2 == 0) mask.left = random() % 40;
    if (random() % 2 == 0) mask.right = static_cast<std::int64_t>(random() % 40) - 10;
    const std::int64_t world = 1 + random() % 4;
    const auto layout = static_cast<Layout>(random() % 3);
    const Positions queries = positions(layout, random() % 200, world, random() % world);
    const Positions keys = positions(layout, random() % 200, world, random() % world);
    for (const ringattn::Run& q : queries.runs) {
      for (const ringattn::Run& k : keys.runs) {
        const Band rows = band(mask, q, k, keys.stride);
        for (std::int64_t i = 0; i < q.count; ++i) {
          for (std::int64_t j = 0; j < k.count; ++j) {
            const bool seen = Range{i + rows.begin, i + rows.end}.contains(j);
            ASSERT_EQ(seen, mask.visible(q.first + i * queries.stride, k.first + j * keys.stride))
                << "left " << mask.left << " right " << mask.right << " row " << i << " key " << j;
          }
        }
      }
    }
  }
}

TEST(Schedule, ABandOfFarPositionsDoesNotOverflow) {
  const Band all = band(IntervalMask{}, {INT64_MAX - 5, 5}, {INT64_MIN + 5, 5}, 1);
  EXPECT_LT(all.begin, -(std::int64_t{1} << 60));
  EXPECT_GT(all.end, std::int64_t{1} << 60);
  const Band near = band({3, 0, 0}, {INT64_MAX - 50, 5}, {INT64_MAX - 60, 5}, 1);
  EXPECT_EQ(near.begin, 7);
  EXPECT_EQ(near.end, 11);
}

TEST(Schedule, IsAConstantExpression) {
  constexpr IntervalMask causal{IntervalMask::kUnbounded, 0, 0};
  constexpr Tiling keys{positions(Layout::kContiguous, 100, 1, 0), 10, nullptr};
  constexpr TileRanges tiles = visit(causal, Range{40, 50}, keys);
  static_assert(tiles.visited[0] == Range{0, 5});
  static_assert(tiles.full[0] == Range{0, 4});
  EXPECT_EQ(tiles.visited[1], Range{});
}

TEST(Schedule, TilesNeverStraddleTwoRuns) {
  const Tiling tiles{positions(Layout::kZigzag, 100, 3, 1), 8, nullptr};
  std::int64_t rows = 0;
  for (std::int64_t t = 0; t < tiles.count(); ++t) {
    EXPECT_EQ(tiles[t].row, rows);
    EXPECT_EQ(tiles[t].span.size(), tiles[t].rows);
    rows += tiles[t].rows;
  }
  EXPECT_EQ(rows, tiles.positions.size());
}

}  // namespace
}  // namespace ringattn
