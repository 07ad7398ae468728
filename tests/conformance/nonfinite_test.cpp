// SPDX-License-Identifier: Apache-2.0
// NaN and inf: what a row sees reaches that row, and nothing else. Padding and rows that see
// nothing poison nobody. Bits tell "nothing else": a clean run must agree exactly elsewhere.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "conformance_testing.h"

namespace ringattn::support {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

class NonFinite : public testing::TestWithParam<std::tuple<const char*, int>> {
 protected:
  RingResult run(const Bench& bench) const {
    return bench.run(std::get<0>(GetParam()), std::get<1>(GetParam()));
  }
};

void set_row(HostTensor& t, std::int64_t b, std::int64_t i, float x) {
  const std::int64_t width = t.shape()[2] * t.shape()[3];
  std::fill_n(t.as<float>() + index_of(t, b, i), width, x);
}

/// Row i of [B, S, heads, dim]: is every element finite, or none, or equal to another run's?
bool finite(const HostTensor& t, std::int64_t b, std::int64_t i) {
  const float* row = t.as<float>() + index_of(t, b, i);
  return std::all_of(row, row + t.shape()[2] * t.shape()[3],
                     [](float x) { return std::isfinite(x); });
}

bool none_finite(const HostTensor& t, std::int64_t b, std::int64_t i) {
  const float* row = t.as<float>() + index_of(t, b, i);
  return std::none_of(row, row + t.shape()[2] * t.shape()[3],
                      [](float x) { return std::isfinite(x); });
}

/// A tile with something that is not finite may be computed another way, so roundings may differ:
/// a dozen eps of the largest values, which are about 5.
bool near(float a, float b) { return std::fabs(a - b) <= 64 * 0x1p-23F; }

bool equal(const HostTensor& a, const HostTensor& b, std::int64_t batch, std::int64_t i) {
  const std::int64_t width = a.shape()[2] * a.shape()[3];
  return std::equal(a.as<float>() + index_of(a, batch, i),
                    a.as<float>() + index_of(a, batch, i) + width,
                    b.as<float>() + index_of(b, batch, i), near);
}

/// Nothing was poisoned: all tensors agree; -inf and inf with themselves.
void expect_near(const RingResult& a, const RingResult& b) {
  for (const NamedResult& r : kResults) {
    const HostTensor& x = a.*r.member;
    const HostTensor& y = b.*r.member;
    for (std::int64_t n = 0; !x.shape().empty() && n < x.elements(); ++n) {
      const float u = x.as<float>()[n], v = y.as<float>()[n];
      ASSERT_TRUE(u == v || near(u, v)) << r.name << " " << n << ": " << u << ", " << v;
    }
  }
}

TEST_P(NonFinite, AValueOrKeyReachesTheRowsThatSeeIt) {
  const Bench clean("sq70_h2_d16_causal_w9,0");
  const RingResult before = run(clean);
  for (HostTensor CaseData::*input : {&CaseData::value, &CaseData::key}) {
    for (float x : {kNan, kInf}) {
      Bench bad = clean;
      set_row(bad.data.*input, 0, 30, x);
      const RingResult after = run(bad);
      for (std::int64_t i = 0; i < 70; ++i) {
        const bool sees = i >= 30 && i <= 39;
        // A key of +inf is a score of either infinity: only the rows where it is +inf, or a NaN,
        // must show it.
        if (sees && !(input == &CaseData::key && x == kInf)) {
          EXPECT_TRUE(none_finite(after.out, 0, i)) << "row " << i;
        }
        if (!sees) {
          EXPECT_TRUE(equal(before.out, after.out, 0, i)) << "row " << i;
        }
      }
    }
  }
}

TEST_P(NonFinite, AQueryReachesItsOwnRow) {
  const Bench clean("b2_sq33_h2_d16");
  const RingResult before = run(clean);
  Bench bad = clean;
  set_row(bad.data.query, 1, 7, kNan);
  const RingResult after = run(bad);
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t i = 0; i < 33; ++i) {
      if (b == 1 && i == 7) {
        EXPECT_TRUE(none_finite(after.out, b, i));
      } else {
        EXPECT_TRUE(equal(before.out, after.out, b, i)) << b << ", " << i;
      }
    }
  }
}

TEST_P(NonFinite, DoutReachesTheKeysThatItsRowSees) {
  const Bench clean("sq70_h2_d16_causal_w9,0_sink_bwd");
  const RingResult before = run(clean);
  Bench bad = clean;
  set_row(bad.data.dout, 0, 30, kNan);
  const RingResult after = run(bad);
  for (std::int64_t j = 0; j < 70; ++j) {
    const bool seen = j >= 21 && j <= 30;
    if (seen) {
      EXPECT_TRUE(none_finite(after.dvalue, 0, j)) << "key " << j;
      EXPECT_TRUE(none_finite(after.dkey, 0, j)) << "key " << j;
    } else {
      EXPECT_TRUE(equal(before.dvalue, after.dvalue, 0, j)) << "key " << j;
      EXPECT_TRUE(equal(before.dkey, after.dkey, 0, j)) << "key " << j;
    }
    EXPECT_EQ(finite(after.dquery, 0, j), j != 30) << "query " << j;
  }
  EXPECT_TRUE(std::isnan(after.dsinks.as<float>()[0]));
}

TEST_P(NonFinite, PaddingPoisonsNothing) {
  Bench clean("b2_sq60_h2_d16_segpad_sink_bwd_dlse");
  for (HostTensor* ids : {&clean.data.q_segment_ids, &clean.data.kv_segment_ids}) {
    for (std::int64_t i = 50; i < 60; ++i) ids->as<std::int32_t>()[60 + i] = -1;
  }
  const RingResult before = run(clean);
  Bench bad = clean;
  for (HostTensor* t : {&bad.data.query, &bad.data.key, &bad.data.value, &bad.data.dout}) {
    for (std::int64_t i = 0; i < 60; ++i) set_row(*t, 0, i, kNan);
    for (std::int64_t i = 50; i < 60; ++i) set_row(*t, 1, i, i % 2 == 0 ? kNan : kInf);
  }
  expect_near(before, run(bad));
}

TEST_P(NonFinite, RowsThatSeeNothingPoisonNothing) {
  // Queries of 40 and beyond see no key at all: their window lies behind the last one.
  const Bench clean("sq60_sk30_h2_d16_causal_w9,0_sink_bwd");
  const RingResult before = run(clean);
  Bench bad = clean;
  for (std::int64_t i = 40; i < 60; ++i) {
    set_row(bad.data.query, 0, i, kNan);
    set_row(bad.data.dout, 0, i, kInf);
  }
  expect_near(before, run(bad));
}

TEST_P(NonFinite, ANanSinkIsANanEverywhereInItsHead) {
  Bench bench("sq20_h2_d16_sink_bwd");
  bench.data.sinks.as<float>()[1] = kNan;
  const RingResult r = run(bench);
  for (std::int64_t i = 0; i < 20; ++i) {
    EXPECT_TRUE(std::isfinite(r.out.as<float>()[index_of(r.out, 0, i, 0, 3)]));
    EXPECT_TRUE(std::isnan(r.out.as<float>()[index_of(r.out, 0, i, 1, 3)]));
    EXPECT_TRUE(std::isnan(r.lse.as<float>()[index_of(r.lse, 0, 1, i)]));
  }
  EXPECT_TRUE(std::isfinite(r.dsinks.as<float>()[0]));
  EXPECT_TRUE(std::isnan(r.dsinks.as<float>()[1]));
}

INSTANTIATE_TEST_SUITE_P(Conformance, NonFinite,
                         testing::Combine(testing::Values("reference", "cpu"),
                                          testing::Values(1, 3, 8)),
                         backend_and_ring);

}  // namespace
}  // namespace ringattn::support
