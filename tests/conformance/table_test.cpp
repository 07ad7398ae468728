// SPDX-License-Identifier: Apache-2.0
// One table of cases x backends x layouts x ring sizes against float64: the error of every tensor,
// the pattern of what is not finite, canaries, bits from run to run and for two numbers of
// threads, counts, and an error that does not grow with the ring.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "conformance/test_name.h"
#include "support/conformance.h"
#include "support/conformance_table.h"
#include "support/data.h"

namespace ringattn::support {
namespace {

using Parameters = std::tuple<const char*, const char*, Layout>;

class Table : public testing::TestWithParam<Parameters> {};

TEST_P(Table, MatchesFloat64OnEveryRing) {
  const auto& [text, backend, layout] = GetParam();
  Case c = parse_case(text);
  c.layout = layout;
  const CaseData data = make_data(c);
  const Problem problem = make_problem(c);
  const Options options = make_options(c, data);
  const Expected expected = make_expected(problem, options, data.inputs(), c.backward);
  CheckSettings settings;
  settings.backend = backend;
  static const auto one_thread = make_thread_pool(1);
  static const auto three_threads = make_thread_pool(3);
  settings.executor = one_thread;
  settings.other_executor = three_threads;
  for (int ring : {1, 2, 3, 4, 8}) {
    c.ring = ring;
    settings.against_one = ring == 8;
    const CheckReport report =
        check_against(expected, problem, options, data.inputs(), ring, c.backward, settings);
    EXPECT_TRUE(report.ok()) << "ringattn check " << to_string(c) << " --backend " << backend
                             << "\n"
                             << report.message();
    EXPECT_EQ(report.result.backend, backend);
  }
}

// The backward reads an `out` that is wider than all else. More rows than one task prepares.
TEST(WideResults, OutOfNarrowInputsMayBeFloat32) {
  for (const char* text : {"sq300_h4x2_d40_bf16_causal_sink_bwd_dlse", "sq300_h2_d32_f16_bwd"}) {
    Case c = parse_case(text);
    c.layout = Layout::kZigzag;
    const CaseData data = make_data(c);
    const Problem problem = make_problem(c);
    const Options options = make_options(c, data);
    CheckSettings settings;
    settings.backend = "cpu";
    settings.out_dtype = DType::kFloat32;
    for (int ring : {1, 4}) {
      const CheckReport report =
          check_problem(problem, options, data.inputs(), ring, c.backward, settings);
      EXPECT_TRUE(report.ok()) << text << " over " << ring << "\n" << report.message();
      EXPECT_EQ(report.result.out.dtype(), DType::kFloat32);
    }
  }
}

std::string parameter_name(const testing::TestParamInfo<Parameters>& info) {
  return std::get<1>(info.param) + std::string("_") + ringattn::name(std::get<2>(info.param)) +
         "_" + test_name(std::get<0>(info.param));
}

INSTANTIATE_TEST_SUITE_P(
    Conformance, Table,
    testing::Combine(testing::ValuesIn(kCases), testing::Values("reference", "cpu"),
                     testing::Values(Layout::kContiguous, Layout::kZigzag, Layout::kStriped)),
    parameter_name);

}  // namespace
}  // namespace ringattn::support
