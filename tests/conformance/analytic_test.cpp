// SPDX-License-Identifier: Apache-2.0
// Cases whose answer is known without a program: uniform weights, one key, sinks that win or lose,
// masks that are the same mask in other words, large scores.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "conformance_testing.h"

namespace ringattn::support {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kFew = 8 * 0x1p-23;  // a few roundings of numbers near 1

void zero(HostTensor& t) { std::fill_n(t.as<float>(), t.elements(), 0.0F); }

class Analytic : public testing::TestWithParam<std::tuple<const char*, int>> {
 protected:
  RingResult run(const Bench& bench) const {
    return bench.run(std::get<0>(GetParam()), std::get<1>(GetParam()));
  }
  /// Both give the same within the tolerances of the error model.
  void expect_same(const Bench& a, const Bench& b) const {
    const Expected expected = a.expected();
    const RingResult result = run(b);
    for (const NamedResult& r : kResults) {
      if ((result.*r.member).shape().empty()) continue;
      const Comparison c =
          compare(r.name, result.*r.member, expected.truth.*r.member, expected.naive.*r.naive,
                  error_model(r.name, a.problem, expected.naive.magnitudes));
      EXPECT_TRUE(c.ok) << c.message;
    }
  }
};

TEST_P(Analytic, ZeroQueriesAverageTheValuesTheySee) {
  Bench bench("sq37_h2_d8_causal_sink");
  zero(bench.data.query);
  const RingResult r = run(bench);
  for (std::int64_t h = 0; h < 2; ++h) {
    const double sink = std::exp(static_cast<double>(bench.data.sinks.as<float>()[h]));
    double sum = 0.0;
    for (std::int64_t i = 0; i < 37; ++i) {
      sum +=
          static_cast<double>(bench.data.value.as<float>()[index_of(bench.data.value, 0, i, h, 3)]);
      const double weight = static_cast<double>(i + 1) + sink;
      EXPECT_NEAR(static_cast<double>(r.out.as<float>()[index_of(r.out, 0, i, h, 3)]), sum / weight,
                  4 * kFew);
      EXPECT_NEAR(static_cast<double>(r.lse.as<float>()[index_of(r.lse, 0, h, i)]),
                  std::log(weight), 4 * kFew);
    }
  }
}

TEST_P(Analytic, AOneKeyWindowCopiesTheValue) {
  for (const char* fields : {"_w0", "_w0_causal", "_chunk1"}) {
    const Bench bench(std::string("b2_sq23_h4x2_d8_bwd") + fields);
    const RingResult r = run(bench);
    for (std::int64_t i = 0; i < 23; ++i) {
      for (std::int64_t h = 0; h < 4; ++h) {
        const auto out = index_of(r.out, 1, i, h, 5);
        const auto value = index_of(bench.data.value, 1, i, h / 2, 5);
        EXPECT_NEAR(r.out.as<float>()[out], bench.data.value.as<float>()[value], kFew);
        EXPECT_NEAR(r.dquery.as<float>()[out], 0.0F, 32 * kFew);
      }
      const auto dvalue = index_of(r.dvalue, 1, i, 1, 5);
      const float group = bench.data.dout.as<float>()[index_of(bench.data.dout, 1, i, 2, 5)] +
                          bench.data.dout.as<float>()[index_of(bench.data.dout, 1, i, 3, 5)];
      EXPECT_NEAR(r.dvalue.as<float>()[dvalue], group, 4 * kFew);
    }
  }
}

TEST_P(Analytic, TheSameMaskInOtherWords) {
  expect_same(Bench("sq40_h2_d8_causal_bwd"), Bench("sq40_h2_d8_chunk40_bwd"));
  expect_same(Bench("sq40_h2_d8_causal_bwd"), Bench("sq40_h2_d8_wnone,0_bwd"));
  expect_same(Bench("sq40_h2_d8_bwd"), Bench("sq40_h2_d8_w39_bwd"));
  expect_same(Bench("sq40_h2_d8_w0_bwd"), Bench("sq40_h2_d8_chunk1_bwd"));
}

TEST_P(Analytic, SinksThatLoseOrWin) {
  Bench with("sq30_h2_d8_causal_sink_bwd");
  for (int h = 0; h < 2; ++h) with.data.sinks.as<float>()[h] = -kInf;
  RingResult lost = run(with);
  const RingResult none = run(Bench("sq30_h2_d8_causal_bwd"));
  EXPECT_EQ(lost.dsinks.as<float>()[0], 0.0F);
  EXPECT_EQ(lost.dsinks.as<float>()[1], 0.0F);
  lost.dsinks = HostTensor();
  EXPECT_EQ(different_bits(lost, none), "");

  for (int h = 0; h < 2; ++h) with.data.sinks.as<float>()[h] = kInf;
  const RingResult won = run(with);
  for (std::int64_t n = 0; n < won.out.elements(); ++n) {
    ASSERT_EQ(won.out.as<float>()[n], 0.0F);
    ASSERT_EQ(won.dquery.as<float>()[n], 0.0F);
    ASSERT_EQ(won.dvalue.as<float>()[n], 0.0F);
  }
  for (std::int64_t n = 0; n < won.lse.elements(); ++n) ASSERT_EQ(won.lse.as<float>()[n], kInf);
  EXPECT_EQ(won.dsinks.as<float>()[0], 0.0F);
}

TEST_P(Analytic, EqualSharedSinksAreOneLargerSink) {
  Bench shared("sq30_h2_d8_causal_sink4_bwd");
  Bench own("sq30_h2_d8_causal_sink_bwd");
  for (int s = 0; s < 4; ++s) shared.data.sinks.as<float>()[s] = 0.75F;
  for (int h = 0; h < 2; ++h) {
    own.data.sinks.as<float>()[h] = static_cast<float>(0.75 + std::log(4.0));
  }
  const RingResult a = run(shared);
  const RingResult b = run(own);
  for (std::int64_t n = 0; n < a.out.elements(); ++n) {
    ASSERT_NEAR(a.out.as<float>()[n], b.out.as<float>()[n], 4 * kFew);
  }
  const float total = b.dsinks.as<float>()[0] + b.dsinks.as<float>()[1];
  for (int s = 0; s < 4; ++s) EXPECT_NEAR(a.dsinks.as<float>()[s], total / 4, 16 * kFew);
}

TEST_P(Analytic, LargeScoresStayFinite) {
  for (const char* fields : {"", "_cap30"}) {
    const RingResult r = run(Bench(std::string("sq40_h2_d64_hostile_causal_bwd") + fields));
    for (const NamedResult& named : kResults) {
      const HostTensor& t = r.*named.member;
      for (std::int64_t n = 0; !t.shape().empty() && n < t.elements(); ++n) {
        ASSERT_TRUE(std::isfinite(t.as<float>()[n])) << named.name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Conformance, Analytic,
                         testing::Combine(testing::Values("reference", "cpu"),
                                          testing::Values(1, 3, 8)),
                         backend_and_ring);

}  // namespace
}  // namespace ringattn::support
