// SPDX-License-Identifier: Apache-2.0
// Golden values of an independent program: plain float64 loops in another language, whose
// gradients finite differences confirmed. Data: x[n] = sin(a n + b), rounded to float32.
// Each tensor is held as two checksums, sum of t[n] and sum of t[n] cos(n).
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "conformance_testing.h"
#include "dtype.h"

namespace ringattn::support {
namespace {

struct Golden {
  const char* name;
  double checksums[10];  // of out, lse (-inf counts as 0), dquery, dkey, dvalue
  std::vector<double> dsinks;
};

const Golden kGolden[] = {
    {"full",
     {5.414802679851, -0.626096008859, 151.972463490226, 3.006040847724, -0.233464030366,
      -0.234199250555, -0.000000000000, -1.163882753740, 0.100503610447, -0.340016629616},
     {}},
    {"causal",
     {4.055905146781, 3.291293750847, 100.166503598925, 0.366628346099, 1.186876689889,
      0.497781004851, 0.000000000000, -1.628859459416, 0.100503610447, 0.906721211396},
     {}},
    {"win(2,1)",
     {5.151881925872, 1.090496868535, 93.470991998970, 0.714943102152, 1.811754070268,
      -0.529865176239, -0.000000000000, -0.197103482087, 0.100503610447, -1.570305503886},
     {}},
    {"causal+win3",
     {5.610794177970, -0.054483358233, 84.660841498699, -0.887665973572, -0.496632630067,
      0.937915140973, 0.000000000000, -1.037461202533, 0.100503610447, 1.176411513541},
     {}},
    {"chunk3",
     {4.459942638719, 5.642803622276, 47.931379262750, -0.252928598939, 1.704051607949,
      1.190073819616, -0.000000000000, -1.198368698837, 0.100503610447, 1.362037089096},
     {}},
    {"chunk5+win(1,0)",
     {3.891073740347, -0.642951303500, 39.318315939593, 1.951136425108, 1.707069313880,
      0.097603621133, 0.000000000000, 0.104670573583, 0.100503610447, -1.797450874524},
     {}},
    {"cap0.5",
     {5.746909855216, -0.647033339556, 138.329275065349, 2.394084576996, 0.402076245324,
      0.649101664029, -0.054897814585, -0.016855150382, 0.100503610447, -0.074926850095},
     {}},
    {"scale2",
     {2.924458952241, -0.343309409255, 296.911899245154, 9.653799663569, 0.300234319518,
      -5.457058260675, -0.000000000000, -7.048832186394, 0.100503610447, -2.160827816446},
     {}},
    {"sinksH causal",
     {14.111290107002, 2.281521921255, 129.019174237869, 6.259049213181, 0.170294611867,
      0.032107789384, 0.395278091331, -0.916085821934, 0.322477781053, 0.135286785735},
     {0.085342998918, -0.280653572776, -0.279918439311, 0.163673551486}},
    {"sinks shared3 causal",
     {5.592610981089, 1.173612466337, 148.675849217334, 2.581924416139, 0.430253375409,
      -0.474684006059, 0.523820662036, -0.847376686006, 0.363396716794, 0.125772358220},
     {-0.043958085886, -0.026661926435, -0.097830518986}},
    {"seg",
     {9.554078956850, 2.748304570227, 57.366839842171, 2.936769264199, 0.872194656342,
      -0.035103865855, 0.000000000000, -0.177047328558, -0.253851847723, 1.440039674024},
     {}},
    {"seg causal",
     {5.314249344680, 6.253485162239, 28.886995629059, 2.210903689035, 1.185670287060,
      1.427091725473, -0.000000000000, -0.508805064680, -0.253851847723, 2.318238794412},
     {}},
    {"all",
     {6.361325739321, 4.140431490350, 75.412389898115, 7.949392143087, 0.513193372990,
      0.666496395476, -0.359487361990, -0.410008473355, -0.224512807510, 1.482835918771},
     {0.552389405426, -0.644458778559, -0.277623297285, -0.320520806931}},
};

struct Rule {
  const char* name;
  const char* fields;  // of the case grammar
};
constexpr Rule kRules[] = {
    {"full", ""},
    {"causal", "_causal"},
    {"win(2,1)", "_w2,1"},
    {"causal+win3", "_causal_w3"},
    {"chunk3", "_chunk3"},
    {"chunk5+win(1,0)", "_chunk5_w1,0"},
    {"cap0.5", "_cap0.5"},
    {"scale2", "_scale2"},
    {"sinksH causal", "_causal_sink"},
    {"sinks shared3 causal", "_causal_sink3"},
    {"seg", "_seg"},
    {"seg causal", "_causal_seg"},
    {"all", "_causal_w3,0_cap0.5_sink_seg"},
};

void fill(HostTensor& t, double a, double b) {
  for (std::int64_t n = 0; n < t.elements(); ++n) {
    t.as<float>()[n] = static_cast<float>(std::sin(a * static_cast<double>(n) + b));
  }
}

Bench golden_problem(const std::string& fields, Layout layout) {
  Bench bench("b2_sq8_h4x2_d4_bwd" + fields);
  fill(bench.data.query, 0.37, 0.1);
  fill(bench.data.key, 0.53, 0.2);
  fill(bench.data.value, 0.71, 0.3);
  fill(bench.data.dout, 0.91, 0.4);
  constexpr float kPerHead[] = {0.5F, -1.0F, 0.0F, 2.0F};
  constexpr float kShared[] = {0.2F, -0.3F, 1.0F};
  if (bench.c.sinks != SinkForm::kNone) {
    const float* sinks = bench.c.sinks == SinkForm::kShared ? kShared : kPerHead;
    std::copy_n(sinks, bench.data.sinks.elements(), bench.data.sinks.as<float>());
  }
  if (bench.c.segments != SegmentForm::kNone) {
    constexpr std::int32_t kIds[] = {0, 0, 0, 1, 1, 2, 2, -1};
    for (std::int64_t i = 0; i < 16; ++i) {
      bench.data.q_segment_ids.as<std::int32_t>()[i] = kIds[i % 8];
      bench.data.kv_segment_ids.as<std::int32_t>()[i] = kIds[i % 8];
    }
  }
  bench.options.layout = layout;
  return bench;
}

void expect_checksums(const HostTensor& t, const double* golden, double tolerance) {
  double sum = 0.0;
  double waves = 0.0;
  for (std::int64_t n = 0; n < t.elements(); ++n) {
    const double x = load(t.dtype(), t.data(), n);
    if (std::isinf(x)) continue;
    sum += x;
    waves += x * std::cos(static_cast<double>(n));
  }
  EXPECT_NEAR(sum, golden[0], tolerance);
  EXPECT_NEAR(waves, golden[1], tolerance);
}

/// Float64 must agree to the last digits that are written down. In float32 each of up to 256
/// elements is off by a few eps of values up to 5, and errors of either sign add up.
void expect_golden(const Golden& golden, const RingResult& result, double tolerance) {
  expect_checksums(result.out, golden.checksums, tolerance);
  expect_checksums(result.lse, golden.checksums + 2, tolerance);
  expect_checksums(result.dquery, golden.checksums + 4, tolerance);
  expect_checksums(result.dkey, golden.checksums + 6, tolerance);
  expect_checksums(result.dvalue, golden.checksums + 8, tolerance);
  ASSERT_EQ(result.dsinks.shape().empty(), golden.dsinks.empty());
  for (std::size_t n = 0; n < golden.dsinks.size(); ++n) {
    const double x =
        load(result.dsinks.dtype(), result.dsinks.data(), static_cast<std::int64_t>(n));
    EXPECT_NEAR(x, golden.dsinks[n], tolerance);
  }
}

constexpr double kExact = 1e-8;
constexpr double kFloat32 = 4 * 0x1p-23 * 5 * 16;  // 4 eps of 5, times sqrt(256) elements

TEST(Golden, ChecksumsAgreeOnEveryRing) {
  std::size_t n = 0;
  for (const Golden& golden : kGolden) {
    ASSERT_STREQ(golden.name, kRules[n].name);
    for (Layout layout : {Layout::kContiguous, Layout::kZigzag, Layout::kStriped}) {
      const Bench bench = golden_problem(kRules[n].fields, layout);
      for (int ring : {1, 2, 3, 8}) {
        SCOPED_TRACE(golden.name + std::string(" on ") + std::to_string(ring) + " ranks, " +
                     name(layout));
        expect_golden(golden, bench.run("reference", ring, true), kExact);
        expect_golden(golden, bench.run("cpu", ring), kFloat32);
      }
    }
    ++n;
  }
  EXPECT_EQ(n, std::size(kRules));
}

}  // namespace
}  // namespace ringattn::support
