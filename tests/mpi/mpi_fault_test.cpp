// SPDX-License-Identifier: Apache-2.0
// Every rank is lost at every verb of forward and backward, and nobody hangs. The launcher's own
// cleanup is off here, or the survivors would be killed before they can say anything; with it, see
// mpi_tool_fault_test.cpp.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "io/io_testing.h"
#include "mpi/launch.h"

namespace ringattn::testing {
namespace {

constexpr int kTimeoutMs = 1000;
constexpr int kRanksAtOnce = 24;

struct Trial {
  int culprit;
  int verb;
  std::string kind;
  bool must_be_noticed;  // somebody still waits for what it has not sent

  std::string word() const {
    return std::to_string(culprit) + ":" + std::to_string(verb) + ":" + kind;
  }
};

std::string line_of(const std::string& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

class MpiFaults : public ::testing::TestWithParam<std::string> {
 protected:
  /// Judges one survivor; did it notice?
  static bool judge(const std::string& file, const Trial& trial, const std::string& what) {
    const std::string line = line_of(file + ".end");
    std::istringstream in(line);
    int code = -1;
    std::int64_t began = 0;
    std::int64_t ended = 0;
    std::string message;
    in >> code >> began >> ended;
    std::getline(in, message);
    if (code == 0) return false;  // it needed nothing more
    EXPECT_EQ(code, 4) << what << ": " << line;
    const std::string name = "rank " + std::to_string(trial.culprit);
    EXPECT_NE(message.find(trial.kind == "throw" ? name + " failed: the cable was cut"
                                                 : name + " is lost or silent"),
              std::string::npos)
        << what << ": " << message;
    EXPECT_LE(ended - began, kTimeoutMs + 1000) << what << ": " << message;
    return true;
  }

  /// Runs the trials, each on its own ring of n, all in one job.
  void run(int n, const std::vector<Trial>& trials) {
    const TempFolder folder;
    const std::string dir = folder.path();
    std::vector<std::string> words = {worker(GetParam()), "faults", dir, std::to_string(kTimeoutMs),
                                      std::to_string(n)};
    for (const Trial& trial : trials) words.push_back(trial.word());
    const int ranks = n * static_cast<int>(trials.size());
    // A stopped rank never ends, so neither does the launcher: watch the ranks, not the job.
    const auto all_ended = [&] {
      for (int r = 0; r < ranks; ++r) {
        const bool guilty = r % n == trials[static_cast<std::size_t>(r / n)].culprit;
        const std::string file = dir + "/" + std::to_string(r);
        if (!guilty && !std::filesystem::exists(file + ".end")) return false;
        const int pid = std::atoi(line_of(file + ".pid").c_str());
        if (!guilty && alive(pid)) return false;
      }
      return true;
    };
    const Launched job = launch(
        GetParam(), {.ranks = ranks, .enough = all_ended, .cleanup = false, .seconds = 20}, words);
    for (std::size_t t = 0; t < trials.size(); ++t) {
      bool noticed = false;
      for (int r = 0; r < n; ++r) {
        const int world_rank = static_cast<int>(t) * n + r;
        const std::string file = dir + "/" + std::to_string(world_rank);
        const std::string what = "ring of " + std::to_string(n) + ", " + trials[t].word() +
                                 ", rank " + std::to_string(r);
        if (r == trials[t].culprit) {
          EXPECT_TRUE(std::filesystem::exists(file + ".fault")) << what << "\n" << job.out;
          const int pid = std::atoi(line_of(file + ".pid").c_str());
          if (pid > 0) ::kill(pid, SIGKILL);
          continue;
        }
        EXPECT_TRUE(std::filesystem::exists(file + ".end")) << what << " hangs\n" << job.out;
        noticed = judge(file, trials[t], what) || noticed;
        const int pid = std::atoi(line_of(file + ".pid").c_str());
        EXPECT_TRUE(pid > 0 && !alive(pid)) << what << " is still there";
      }
      EXPECT_TRUE(noticed || !trials[t].must_be_noticed) << "nobody noticed " << trials[t].word();
    }
  }
};

/// All trials on rings of n: every rank at every verb of forward and backward, the kinds in turn.
std::vector<Trial> all_trials(const std::string& flavour, int n) {
  const TempFolder folder;
  const Launched counted =
      launch(flavour, {.ranks = n}, {worker(flavour), "verbs", folder.path(), std::to_string(n)});
  EXPECT_EQ(counted.code, 0) << counted.out;
  int verbs = 0;
  int last_send = 0;
  std::istringstream(line_of(folder / "verbs")) >> verbs >> last_send;
  EXPECT_GT(verbs, 4 * n);
  // Hydra's own proxy kills a job of which a process was killed, with -disable-auto-cleanup too:
  // that is what MpiToolFaults tries.
  const std::vector<std::string> kinds =
      flavour == "mpich" ? std::vector<std::string>{"stop", "exit", "throw"}
                         : std::vector<std::string>{"kill", "stop", "exit", "throw"};
  std::vector<Trial> trials;
  for (int verb = 0; verb < verbs; ++verb) {
    for (int culprit = 0; culprit < n; ++culprit) {
      trials.push_back({culprit, verb, kinds[trials.size() % kinds.size()], verb <= last_send});
    }
  }
  return trials;
}

TEST_P(MpiFaults, EveryTrialNamesTheLostRankWithinTheDeadline) {
  std::size_t count = 0;
  for (const int n : {2, 3, 4}) {
    const std::vector<Trial> trials = all_trials(GetParam(), n);
    count += trials.size();
    const auto batch = static_cast<std::size_t>(kRanksAtOnce / n);
    for (std::size_t at = 0; at < trials.size(); at += batch) {
      const auto end = std::min(trials.size(), at + batch);
      run(n, {trials.begin() + static_cast<std::ptrdiff_t>(at),
              trials.begin() + static_cast<std::ptrdiff_t>(end)});
      if (HasFailure()) return;
    }
  }
  EXPECT_GT(count, 100U);
}

TEST_P(MpiFaults, ASelectionNamesTheLostRankWithinTheDeadline) {
  for (const int n : {2, 3, 4}) {
    const std::vector<Trial> trials = all_trials(GetParam(), n);
    std::vector<Trial> some;
    // Stops of one batch, spread over hops, ranks and kinds: the step has no divisor in common
    // with their numbers.
    const std::size_t batch = 12 / static_cast<std::size_t>(n);
    const std::size_t step = trials.size() / batch / 12 * 12 + 5;
    for (std::size_t i = 0; i < batch; ++i) some.push_back(trials[i * step % trials.size()]);
    run(n, some);
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MpiFaults);
INSTANTIATE_TEST_SUITE_P(On, MpiFaults, ::testing::ValuesIn(flavours()),
                         [](const auto& p) { return p.param; });

}  // namespace
}  // namespace ringattn::testing
