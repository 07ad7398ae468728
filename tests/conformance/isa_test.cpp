// SPDX-License-Identifier: Apache-2.0
// Every instruction set of this machine on every case and dtype, and on numbers at the ends: large
// scores, -inf, subnormals, rows whose scores are all equal. (table_test.cpp runs the best one on
// every ring and layout.)
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "conformance/test_name.h"
#include "conformance_testing.h"
#include "cpu/cpu.h"
#include "support/conformance_table.h"

namespace ringattn::support {
namespace {

/// Against float64 on every instruction set, with other numbers of threads for the same bits.
void expect_right_everywhere(const Bench& bench, std::initializer_list<int> rings) {
  const Expected expected = bench.expected();
  static const auto one_thread = make_thread_pool(1);
  static const auto three_threads = make_thread_pool(3);
  CheckSettings settings;
  settings.executor = one_thread;
  settings.other_executor = three_threads;
  for (const std::string& isa : cpu::instruction_sets()) {
    settings.backend = "cpu:" + isa;
    for (const int ring : rings) {
      const CheckReport report =
          check_against(expected, bench.problem, bench.options, bench.data.inputs(), ring,
                        bench.c.backward, settings);
      EXPECT_TRUE(report.ok()) << "ringattn check " << to_string(bench.c) << " --isa " << isa
                               << ", ring " << ring << "\n"
                               << report.message();
    }
  }
}

using Parameters = std::tuple<const char*, DType>;
class EveryIsa : public testing::TestWithParam<Parameters> {};

TEST_P(EveryIsa, MatchesFloat64) {
  const auto& [text, dtype] = GetParam();
  Case c = parse_case(text);
  c.dtype = dtype;
  c.layout = Layout::kZigzag;
  expect_right_everywhere(Bench(to_string(c)), {1, 3});
}

std::string parameter_name(const testing::TestParamInfo<Parameters>& parameters) {
  return std::string(ringattn::name(std::get<1>(parameters.param))) + "_" +
         test_name(std::get<0>(parameters.param));
}

INSTANTIATE_TEST_SUITE_P(Conformance, EveryIsa,
                         testing::Combine(testing::ValuesIn(kCases),
                                          testing::Values(DType::kFloat32, DType::kBFloat16,
                                                          DType::kFloat16)),
                         parameter_name);

void change(HostTensor& t, const std::function<float(float)>& f) {
  for (std::int64_t i = 0; i < t.elements(); ++i) t.as<float>()[i] = f(t.as<float>()[i]);
}

TEST(EveryIsaAtTheEnds, ScoresOfTenThousandEitherWay) {
  for (const char* text : {"sq300_h2_d64_bwd", "sq300_h2_d64_causal_bwd"}) {
    Bench bench(text);
    change(bench.data.query, [](float x) { return x * 1e3F; });
    change(bench.data.key, [](float x) { return x * 1e1F; });
    expect_right_everywhere(bench, {1, 2});
  }
}

/// Nine kv heads, eight query tiles each: three threads take three of them whole, share the others.
TEST(EveryIsaAtTheEnds, WholePlanesBesideSpreadOnes) {
  expect_right_everywhere(Bench("b3_sq60_h6x3_d16_causal_qb16_bwd"), {1});
}

TEST(EveryIsaAtTheEnds, RisingScoresMoveTheReferenceAtEveryTile) {
  Bench bench("sq100_sk700_h2_d16_bwd");
  change(bench.data.query, [](float x) { return std::fabs(x); });
  const std::int64_t width = 2 * 16;
  for (std::int64_t j = 0; j < 700; ++j) {
    for (std::int64_t d = 0; d < width; ++d) {
      bench.data.key.as<float>()[j * width + d] = static_cast<float>(j) * 0.1F;
    }
  }
  expect_right_everywhere(bench, {1, 2});
}

/// Exponents beyond float32 must not come back as small ones.
TEST(EveryIsaAtTheEnds, OneKeyFarAboveAllThatCameBefore) {
  for (const float key : {25.0F, 35.0F, 43.0F, 70.0F, 3000.0F}) {
    Bench bench("sq20_sk384_d16_bwd");
    change(bench.data.query, [](float) { return 1.0F; });
    change(bench.data.key, [](float) { return 0.0F; });
    std::fill_n(bench.data.key.as<float>() + 200 * 16, 16, key);  // a score of 4 * key
    expect_right_everywhere(bench, {1, 2});
  }
}

TEST(EveryIsaAtTheEnds, RowsWhoseScoresAreAllEqual) {
  Bench bench("sq300_h2_d64_bwd");
  change(bench.data.key, [](float) { return 0.5F; });
  expect_right_everywhere(bench, {1, 2});
}

TEST(EveryIsaAtTheEnds, Subnormals) {
  Bench bench("sq150_h2_d32_bwd");
  change(bench.data.query, [](float x) { return x * 1e-39F; });
  change(bench.data.value, [](float x) { return x * 1e-39F; });
  expect_right_everywhere(bench, {1, 2});
}

/// A weight of 1 that is kept as 1 + 0 must not make NaN of them.
TEST(EveryIsaAtTheEnds, ValuesOfMinusInfinityStayThat) {
  for (const char* text : {"sq150_h2_d16_bf16", "sq150_h2_d16_bf16_causal", "sq300_h2_d16_f16"}) {
    Bench bench(text);
    const std::uint16_t minus_infinity = bench.c.dtype == DType::kBFloat16 ? 0xFF80 : 0xFC00;
    for (const std::int64_t j : {0, 5, 140}) {
      bench.data.value.as<std::uint16_t>()[index_of(bench.data.value, 0, j, 0, 3)] = minus_infinity;
    }
    expect_right_everywhere(bench, {1, 2});
  }
}

TEST(EveryIsaAtTheEnds, ScoresOfMinusInfinityHaveNoWeight) {
  Bench bench("sq300_h2_d16");
  change(bench.data.query, [](float x) { return std::fabs(x) + 0.1F; });
  const std::int64_t width = 2 * 16;
  for (const std::int64_t j : {0, 5, 150, 151, 299}) {
    std::fill_n(bench.data.key.as<float>() + j * width, width,
                -std::numeric_limits<float>::infinity());
  }
  expect_right_everywhere(bench, {1, 2});
}

}  // namespace
}  // namespace ringattn::support
