// SPDX-License-Identifier: Apache-2.0
// The tool under mpirun as users start it, when a rank is lost at any verb: of reading, forward,
// backward or writing. The launcher may kill the survivors at once. Whatever it does, the job ends
// by itself, nothing is left behind, and OUT is whole or not there.
#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <thread>

#include "io/io_testing.h"
#include "io/tensor_file.h"
#include "mpi/launch.h"
#include "support/data.h"

namespace ringattn::testing {
namespace {

using std::chrono::seconds;

std::string faulty_tool(const std::string& flavour) {
  return std::string(RINGATTN_MPI_BIN) + "/faulty_ringattn_" + flavour;
}

class MpiToolFaults : public ::testing::TestWithParam<std::string> {
 protected:
  MpiToolFaults() {
    const support::CaseData data = support::make_data(support::parse_case("sq37_h2x1_d8_seg_bwd"));
    write_tensors(in_, {{"query", data.query},
                        {"key", data.key},
                        {"value", data.value},
                        {"dout", data.dout},
                        {"q_segment_ids", data.q_segment_ids}});
  }

  Launched run(int n, std::vector<std::pair<std::string, std::string>> environment) const {
    return launch(GetParam(), {.ranks = n, .environment = std::move(environment), .seconds = 30},
                  {faulty_tool(GetParam()), "run", in_, "-o", out_, "--backward", "--communicator",
                   "mpi", "--timeout", "1", "--threads", "1"});
  }

  /// How many verbs a rank of n has; leaves what OUT must be in `expected_`.
  int count_verbs(int n) {
    const Launched done = run(n, {{"RINGATTN_TEST_VERBS", folder_ / "verbs"}});
    EXPECT_EQ(done.code, 0) << done.out;
    expected_ = get(out_);
    EXPECT_FALSE(expected_.empty());
    return std::atoi(get(folder_ / "verbs").c_str());
  }

  void try_fault(int n, int culprit, int verb, const std::string& kind) {
    std::filesystem::remove(out_);
    const std::string fault = std::to_string(culprit) + ":" + std::to_string(verb) + ":" + kind;
    const std::string what = GetParam() + ", " + std::to_string(n) + " ranks, " + fault;
    const Launched done = run(n, {{"RINGATTN_TEST_FAULT", fault}});
    EXPECT_NE(done.code, -1) << what << " hangs: " << done.out;
    if (kind != "exit") {
      EXPECT_NE(done.code, 0) << what << ": " << done.out;
    }
    expect_nothing_left(what);
    if (std::filesystem::exists(out_)) {
      EXPECT_EQ(get(out_), expected_) << what;
    }
    // What the launcher cannot see, the ranks must say: none was killed before it could.
    const std::string name = "rank " + std::to_string(culprit);
    if (kind == "stop") {
      EXPECT_NE(done.out.find(name + " is lost or silent"), std::string::npos)
          << what << ": " << done.out;
    }
    if (kind == "throw") {
      EXPECT_NE(done.out.find("ringattn: error: the cable was cut"), std::string::npos)
          << what << ": " << done.out;
    }
  }

  /// No process, and beside IN and OUT no file.
  void expect_nothing_left(const std::string& what) {
    const auto end = std::chrono::steady_clock::now() + seconds(3);
    while (!pids_with(in_).empty() && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    for (const int pid : pids_with(in_)) {
      ADD_FAILURE() << what << ": process " << pid << " is still there";
      ::kill(pid, SIGKILL);
    }
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
      const std::string name = entry.path().filename().string();
      if (!name.starts_with(".ringattn-")) continue;
      ADD_FAILURE() << what << " left " << name;
      std::filesystem::remove(entry.path());
    }
  }

  const TempFolder folder_;
  const std::string in_ = folder_ / "in.safetensors";
  const std::string out_ = folder_ / "out.safetensors";
  std::string expected_;
};

const char* const kKinds[] = {"kill", "stop", "exit", "throw"};

TEST_P(MpiToolFaults, EveryTrialEndsAndLeavesNothing) {
  int trials = 0;
  for (const int n : {2, 3, 4}) {
    const int verbs = count_verbs(n);
    ASSERT_GT(verbs, 10 * n);
    for (int verb = 0; verb < verbs && !HasFailure(); ++verb) {
      try_fault(n, verb % n, verb, kKinds[trials++ % 4]);
    }
  }
  EXPECT_GT(trials, 100);
}

TEST_P(MpiToolFaults, ASelectionEndsAndLeavesNothing) {
  const int n = 3;
  const int verbs = count_verbs(n);
  for (int i = 0; i < 8; ++i) try_fault(n, i % n, i * (verbs - 1) / 7, kKinds[i % 4]);
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MpiToolFaults);
INSTANTIATE_TEST_SUITE_P(On, MpiToolFaults, ::testing::ValuesIn(flavours()),
                         [](const auto& p) { return p.param; });

}  // namespace
}  // namespace ringattn::testing
