// SPDX-License-Identifier: Apache-2.0
// The reference's gradients against finite differences of its own float64 forward: everything else
// is compared with the reference, so it must stand on its own.
#include <gtest/gtest.h>

#include <cmath>

#include "conformance_testing.h"

namespace ringattn::support {
namespace {

/// sum of out * dout + lse * dlse, over finite lse.
double loss(const Bench& bench) {
  Bench forward = bench;
  forward.c.backward = false;
  const RingResult r = forward.run("reference", 2, true);
  double sum = 0.0;
  for (std::int64_t n = 0; n < r.out.elements(); ++n) {
    sum += r.out.as<double>()[n] * static_cast<double>(bench.data.dout.as<float>()[n]);
  }
  for (std::int64_t n = 0; bench.c.dlse && n < r.lse.elements(); ++n) {
    const double lse = r.lse.as<double>()[n];
    if (std::isfinite(lse)) sum += lse * static_cast<double>(bench.data.dlse.as<float>()[n]);
  }
  return sum;
}

/// Inputs are float32, so steps are powers of two that change them exactly: errors are those of
/// the central difference, of the order of step^2 times a third derivative.
double difference(const Bench& bench, HostTensor CaseData::*input, std::int64_t n) {
  constexpr float kStep = 0x1p-10F;
  Bench moved = bench;
  float& x = (moved.data.*input).as<float>()[n];
  const float before = x;
  x = before + kStep;
  const double width = static_cast<double>(x);
  const double above = loss(moved);
  x = before - kStep;
  const double below = loss(moved);
  return (above - below) / (width - static_cast<double>(x));
}

void expect_gradient(const Bench& bench, const char* what, HostTensor CaseData::*input,
                     const HostTensor& gradient) {
  constexpr double kStepSquared = 0x1p-20;
  const std::int64_t count = gradient.elements();
  const std::int64_t stride = std::max<std::int64_t>(1, count / 7);
  for (std::int64_t n = 0; n < count; n += stride) {
    EXPECT_NEAR(gradient.as<double>()[n], difference(bench, input, n), 32 * kStepSquared)
        << what << " " << n << " of " << to_string(bench.c);
  }
}

TEST(Gradients, OfTheReferenceAreFiniteDifferences) {
  for (const char* text :
       {"b2_sq6_h4x2_d4_bwd", "sq9_sk7_h2_d5_dv3_causal_bwd_dlse", "sq9_h2_d4_w2,1_cap0.5_bwd_dlse",
        "b2_sq7_h4x2_d4_causal_sink_bwd_dlse", "b2_sq7_h4x2_d4_sink3_cap2_bwd_dlse",
        "sq7_h2_d4_sinkhx3_seg_bwd_dlse", "sq8_h2_d4_maskh_sink_bwd",
        "sq8_h2_d4_chunk3_scale-0.5_bwd", "sq8_h2_d4_pos_causal_bwd"}) {
    const Bench bench(text);
    const RingResult r = bench.run("reference", 3, true);
    expect_gradient(bench, "dquery", &CaseData::query, r.dquery);
    expect_gradient(bench, "dkey", &CaseData::key, r.dkey);
    expect_gradient(bench, "dvalue", &CaseData::value, r.dvalue);
    if (bench.c.sinks != SinkForm::kNone) {
      expect_gradient(bench, "dsoftmax_aux", &CaseData::sinks, r.dsinks);
    }
  }
}

}  // namespace
}  // namespace ringattn::support
