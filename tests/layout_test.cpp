// SPDX-License-Identifier: Apache-2.0
// Layouts: every position has one owner, shards are even, and shard and unshard are inverse.
#include "ringattn/layout.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "io/host_tensor.h"

namespace ringattn {
namespace {

constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kZigzag, Layout::kStriped};

TEST(Layout, EveryPositionHasOneOwnerForAnyLengthAndRing) {
  for (const Layout layout : kLayouts) {
    for (std::int64_t length = 0; length < 40; ++length) {
      for (std::int64_t world = 1; world < 12; ++world) {
        std::set<std::int64_t> seen;
        std::int64_t least = length;
        std::int64_t most = 0;
        for (std::int64_t rank = 0; rank < world; ++rank) {
          const Positions p = positions(layout, length, world, rank);
          for (std::int64_t i = 0; i < p.size(); ++i) {
            ASSERT_TRUE(seen.insert(p(i)).second) << "position " << p(i) << " twice";
            if (i > 0) {
              ASSERT_LT(p(i - 1), p(i));
            }
          }
          least = std::min(least, p.size());
          most = std::max(most, p.size());
        }
        ASSERT_EQ(static_cast<std::int64_t>(seen.size()), length);
        if (length > 0) {
          ASSERT_EQ(*seen.begin(), 0);
          ASSERT_EQ(*seen.rbegin(), length - 1);
        }
        ASSERT_LE(most - least, layout == Layout::kZigzag ? 2 : 1);
      }
    }
  }
}

TEST(Layout, FollowsTheContract) {
  EXPECT_EQ(positions(Layout::kContiguous, 10, 4, 1).runs[0], (ringattn::Run{2, 3}));
  const Positions zigzag = positions(Layout::kZigzag, 16, 2, 1);
  EXPECT_EQ(zigzag.runs[0], (ringattn::Run{4, 4}));
  EXPECT_EQ(zigzag.runs[1], (ringattn::Run{8, 4}));
  const Positions striped = positions(Layout::kStriped, 7, 3, 1);
  EXPECT_EQ(striped.size(), 2);
  EXPECT_EQ(striped(1), 4);
}

TEST(Layout, ChunksOfHugeLengthsDoNotOverflow) {
  const std::int64_t length = INT64_MAX - 5;
  std::int64_t end = 0;
  for (std::int64_t rank = 0; rank < 1000; ++rank) {
    const Positions p = positions(Layout::kContiguous, length, 1000, rank);
    ASSERT_EQ(p.runs[0].first, end);
    end += p.runs[0].count;
  }
  EXPECT_EQ(end, length);
}

TEST(Layout, UnshardUndoesShard) {
  for (const Layout layout : kLayouts) {
    for (const int seq_dim : {0, 1, 2}) {
      for (const std::int64_t world : {1, 2, 3, 5, 9}) {
        std::vector<std::int64_t> shape = {2, 3, 2, 4};
        shape[static_cast<std::size_t>(seq_dim)] = 7;
        HostTensor global(DType::kInt32, shape);
        std::iota(global.as<std::int32_t>(), global.as<std::int32_t>() + global.elements(), 1);
        HostTensor back(DType::kInt32, shape);
        for (std::int64_t rank = 0; rank < world; ++rank) {
          auto local_shape = shape;
          const Positions p = positions(layout, 7, world, rank);
          local_shape[static_cast<std::size_t>(seq_dim)] = p.size();
          HostTensor local(DType::kInt32, local_shape);
          shard(global.view(), seq_dim, layout, world, rank, local.view());
          if (seq_dim == 0 && p.size() > 0) {
            EXPECT_EQ(local.as<std::int32_t>()[0], 1 + p(0) * 3 * 2 * 4);
          }
          unshard(local.view(), seq_dim, layout, world, rank, back.view());
        }
        EXPECT_TRUE(std::equal(global.as<std::int32_t>(),
                               global.as<std::int32_t>() + global.elements(),
                               back.as<std::int32_t>()))
            << name(layout) << " dimension " << seq_dim << " world " << world;
      }
    }
  }
}

TEST(Layout, ShardsTheLastDimensionAndStridedViews) {
  HostTensor global(DType::kInt32, {3, 10});
  std::iota(global.as<std::int32_t>(), global.as<std::int32_t>() + 30, 0);
  HostTensor wide(DType::kInt32, {3, 8});
  TensorView local = wide.view();
  local.shape[1] = 4;
  local.strides[1] = 2;
  shard(global.view(), 1, Layout::kStriped, 3, 0, local);
  EXPECT_EQ(wide.as<std::int32_t>()[2], 3);
  EXPECT_EQ(wide.as<std::int32_t>()[8 + 6], 19);
  EXPECT_EQ(wide.as<std::int32_t>()[1], 0);  // the gap is untouched
}

}  // namespace
}  // namespace ringattn
