// SPDX-License-Identifier: Apache-2.0
// The route: every live pair is reached, with the fewest transfers, and nothing travels farther
// than somebody needs it.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "plan.h"

namespace ringattn {
namespace {

Plan make_plan(std::int64_t seq, int world, const Mask& mask, Layout layout = Layout::kContiguous,
               int rank = 0) {
  Problem problem;
  problem.query_seq = problem.key_seq = seq;
  problem.head_dim = 4;
  Options options;
  options.mask = mask;
  options.layout = layout;
  return Plan(problem, options, rank, world, true);
}

std::vector<Route> routes(const LiveMatrix& live) {
  std::vector<Route> all;
  for (int r = 0; r < live.world(); ++r) all.push_back(make_route(live, r));
  return all;
}

/// Both ends of every transfer agree, and a block is at hand where it is used or sent on.
void expect_consistent(const LiveMatrix& live) {
  const int world = live.world();
  const auto all = routes(live);
  for (int r = 0; r < world; ++r) {
    std::set<int> computed;
    for (std::size_t s = 0; s < all[r].steps.size(); ++s) {
      const Step& step = all[r].steps[s];
      ASSERT_EQ(step.offset, all[(r + 1) % world].steps[s].offset) << "ranks step together";
      ASSERT_EQ(((r - step.offset) % world + world) % world, step.owner);
      if (step.live && live.at(r, step.owner)) computed.insert(step.owner);
      if (step.offset == 0) continue;
      if (step.live) {
        ASSERT_TRUE(step.receives);
      }
      const int towards = step.offset > 0 ? 1 : -1;
      const Step& peer = all[((r + towards) % world + world) % world].steps[s];
      ASSERT_EQ(step.sends, peer.receives);
      if (step.sends && std::abs(step.offset) > 1) {
        ASSERT_TRUE(all[r].steps[s - 1].receives) << "sends on what it does not have";
      }
    }
    for (int k = 0; k < world; ++k) ASSERT_EQ(computed.count(k) == 1, live.at(r, k));
  }
}

TEST(Route, ReachesEveryLivePairOfRandomMatrices) {
  std::mt19937 random(9);
  for (int trial = 0; trial < 2000; ++trial) {
    const int world = 1 + static_cast<int>(random() % 9);
    const std::uint64_t density = random() % 10;
    LiveMatrix live(world);
    for (int q = 0; q < world; ++q) {
      for (int k = 0; k < world; ++k) live.set(q, k, random() % 10 < density);
    }
    expect_consistent(live);
    if (HasFatalFailure()) FAIL() << "trial " << trial;
  }
}

TEST(Route, TakesOneTransferFewerThanRanks) {
  const Plan plan = make_plan(64, 8, Mask::full());
  for (int r = 0; r < 8; ++r) EXPECT_EQ(plan.counts(Pass::kForward, r).hops, 7);
}

TEST(Route, WindowsTakeAsManyTransfersAsTheyReachShards) {
  const auto transfers = [](const Mask& mask) {
    const Plan plan = make_plan(800, 8, mask);  // 100 rows a rank
    return make_route(plan.live_matrix(), 3).steps.size() - 1;
  };
  EXPECT_EQ(transfers(Mask::window(100, 0)), 1U);
  EXPECT_EQ(transfers(Mask::window(101, 0)), 2U);
  EXPECT_EQ(transfers(Mask::window(0, 250)), 3U);
  EXPECT_EQ(transfers(Mask::window(150, 250)), 5U);
  EXPECT_EQ(transfers(Mask::window(0, 0)), 0U);
  EXPECT_EQ(transfers(Mask::chunk(100)), 0U);
}

TEST(Route, BlocksStopWhereNobodyNeedsThemAnyMore) {
  // Causal, contiguous: the last rank's block is needed by nobody else.
  const Plan plan = make_plan(80, 4, Mask::causal());
  const LiveMatrix live = plan.live_matrix();
  EXPECT_EQ(make_route(live, 3).forward_reach, 0);
  EXPECT_EQ(make_route(live, 0).forward_reach, 3);
}

TEST(Route, StripedWindowsOfNothingButTheDiagonalAreDead) {
  const Plan plan = make_plan(64, 4, Mask::window(0, 0), Layout::kStriped);
  EXPECT_EQ(make_route(plan.live_matrix(), 1).steps.size(), 1U);
}

TEST(Route, SegmentsCutHops) {
  Problem problem;
  problem.query_seq = problem.key_seq = 40;
  problem.head_dim = 4;
  Options options;
  options.segment_ids = true;
  const Plan plan(problem, options, 0, 4, true);
  std::vector<std::int32_t> ids(40);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i / 20);
  GlobalData data;
  data.q_segment_ids = data.kv_segment_ids = ids.data();
  // Documents of two shards each: rank 0 sees 0 and 1, rank 1 the same.
  const Route route = make_route(plan.live_matrix(data), 0);
  EXPECT_EQ(route.steps.size(), 3U);  // own, one forward, one backward
}

}  // namespace
}  // namespace ringattn
