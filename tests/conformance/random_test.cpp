// SPDX-License-Identifier: Apache-2.0
// Random cases over every field, as `ringattn check --random` draws them, on every instruction set
// of this machine in turn. The seeds are fixed, so a failure repeats.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/conformance.h"

namespace ringattn::support {
namespace {

/// Those of the CPU that this machine has.
std::vector<std::string> instruction_sets() {
  for (const BackendInfo& backend : backends()) {
    if (backend.name == "cpu") return backend.instruction_sets;
  }
  throw Error(ErrorCode::kInternal, "there is no backend cpu");
}

class RandomCases : public testing::TestWithParam<int> {};

TEST_P(RandomCases, MatchFloat64) {
  constexpr std::uint64_t kCasesPerTest = 25;
  const auto first = static_cast<std::uint64_t>(GetParam()) * kCasesPerTest;
  CheckSettings settings;
  static const auto three_threads = make_thread_pool(3);
  settings.other_executor = three_threads;
  static const std::vector<std::string> isas = instruction_sets();
  for (std::uint64_t seed = first; seed < first + kCasesPerTest; ++seed) {
    const Case c = random_case(seed);
    settings.backend = "cpu:" + isas[seed % isas.size()];
    SCOPED_TRACE("ringattn check " + to_string(c) + " --isa " + isas[seed % isas.size()]);
    const CheckReport report = check_case(c, settings);
    EXPECT_TRUE(report.ok()) << report.message();
  }
}

INSTANTIATE_TEST_SUITE_P(Conformance, RandomCases, testing::Range(0, 16));

}  // namespace
}  // namespace ringattn::support
