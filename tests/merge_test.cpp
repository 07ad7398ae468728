// SPDX-License-Identifier: Apache-2.0
// The softmax state: a monoid whose merges never make NaN of finite scores.
#include "merge.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace ringattn {
namespace {

constexpr double kInf = kInfinity<double>;
double natural(double x) { return std::exp(x); }

/// The state of one row with values 1: acc equals sum.
struct State {
  double max = -kInf;
  double sum = 0.0;

  void see(double score) { merge({score, 1.0}); }
  void merge(const State& other) {
    const double now = std::max(max, other.max);
    sum = sum * rescale(max, now, natural) + other.sum * rescale(other.max, now, natural);
    max = now;
  }
};

TEST(Merge, EmptyIsTheIdentityOnBothSides) {
  State a;
  a.see(3.0);
  a.see(-1.0);
  State left;
  left.merge(a);
  State right = a;
  right.merge(State{});
  EXPECT_EQ(left.sum, a.sum);
  EXPECT_EQ(right.sum, a.sum);
  State nothing;
  nothing.merge(State{});
  EXPECT_EQ(nothing.sum, 0.0);
  EXPECT_EQ(nothing.max, -kInf);
}

TEST(Merge, AnySplitGivesTheSameResult) {
  const std::vector<double> scores = {-700.0, 0.5, 700.0, 699.0, -3.0, 12.0};
  State whole;
  for (double s : scores) whole.see(s);
  for (std::size_t cut = 0; cut <= scores.size(); ++cut) {
    State a;
    State b;
    for (std::size_t i = 0; i < scores.size(); ++i) (i < cut ? a : b).see(scores[i]);
    a.merge(b);
    EXPECT_DOUBLE_EQ(finish(a.max, a.sum, -kInf).lse, finish(whole.max, whole.sum, -kInf).lse);
  }
}

TEST(Merge, RowsThatSawNothingAreZeroAndMinusInfinity) {
  const auto row = finish(-kInf, 0.0, -kInf);
  EXPECT_TRUE(row.zero);
  EXPECT_EQ(row.lse, -kInf);
  const auto with_sink = finish(-kInf, 0.0, 2.5);
  EXPECT_TRUE(with_sink.zero);
  EXPECT_EQ(with_sink.lse, 2.5);
}

TEST(Merge, SinksJoinOnce) {
  State a;
  a.see(1.0);
  const auto row = finish(a.max, a.sum, 2.0);
  EXPECT_DOUBLE_EQ(row.lse, std::log(std::exp(1.0) + std::exp(2.0)));
  EXPECT_DOUBLE_EQ(row.factor, std::exp(1.0 - row.lse));
  EXPECT_DOUBLE_EQ(finish(a.max, a.sum, -kInf).lse, 1.0);
}

TEST(Merge, InfiniteSinksTakeEverythingAndNanStays) {
  EXPECT_TRUE(finish(1.0, 1.0, kInf).zero);
  EXPECT_EQ(finish(1.0, 1.0, kInf).lse, kInf);
  EXPECT_TRUE(std::isnan(finish(1.0, 1.0, std::nan("")).factor));
  EXPECT_TRUE(std::isnan(finish(1.0, std::nan(""), kInf).lse));
  EXPECT_FALSE(finish(1.0, std::nan(""), kInf).zero);
}

TEST(Merge, ScoresOfPlusInfinityBecomeNan) {
  EXPECT_TRUE(std::isnan(rescale(kInf, kInf, natural)));
  EXPECT_EQ(rescale(-kInf, -kInf, natural), 0.0);
}

TEST(Merge, BackwardGivesDeadRowsNoWeight) {
  EXPECT_EQ(std::exp(5.0 - backward_lse(-kInf)), 0.0);
  EXPECT_EQ(backward_lse(3.0), 3.0);
}

}  // namespace
}  // namespace ringattn
