// SPDX-License-Identifier: Apache-2.0
// Rings over MPI that lose nobody: the same bits as rings of threads, nothing stale, no deadlock.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "mpi/launch.h"

namespace ringattn::testing {
namespace {

class MpiRing : public ::testing::TestWithParam<std::string> {
 protected:
  Launched run(int ranks, std::vector<std::string> words) const {
    words.insert(words.begin(), worker(GetParam()));
    return launch(GetParam(), {.ranks = ranks}, words);
  }
};

const std::vector<std::string> kCases = {
    "sq37_h2x1_d8_causal_bwd",   "sq50_h4x2_d16_bf16_causal_w7,12_zigzag_seg_sink_bwd",
    "sq41_d8_striped_pos_bwd",   "b2_sq30_h2_d8_chunk7_cap30_bwd",
    "sq20_d8_mask_bwd",          "sq3_sk90_d8_f16_bwd",
    "sq64_h2_d72_w20,0_bwd_dlse"};

std::vector<std::string> with_cases(const std::string& scenario) {
  std::vector<std::string> words = {scenario};
  words.insert(words.end(), kCases.begin(), kCases.end());
  return words;
}

TEST_P(MpiRing, GivesTheBitsOfTheRingOfThreads) {
  for (const int ranks : {1, 2, 3, 4}) {
    const Launched done = run(ranks, with_cases("same"));
    EXPECT_EQ(done.code, 0) << ranks << " ranks: " << done.out;
  }
}

TEST_P(MpiRing, WorksOnSubCommunicatorsBesideTheApplicationsTraffic) {
  const Launched done = run(4, with_cases("beside"));
  EXPECT_EQ(done.code, 0) << done.out;
}

TEST_P(MpiRing, DeliversEveryBlockUnderRandomDelays) {
  for (const int ranks : {2, 4}) {  // 2,000 rings of five hops each
    const Launched done = run(ranks, {"storm", std::to_string(ranks), "10"});
    EXPECT_EQ(done.code, 0) << done.out;
  }
}

TEST_P(MpiRing, ABlockOfAnotherHopOrOwnerIsAnError) {
  for (const bool hop : {true, false}) {
    const Launched done = run(2, {"stale", hop ? "hop" : "owner"});
    EXPECT_EQ(done.code, 0) << done.out;
    const std::string got = hop ? "got 8 bytes of the block of rank 0 at hop 7"
                                : "got 8 bytes of the block of rank 7 at hop 1";
    EXPECT_NE(done.out.find("rank 1 expected 8 bytes of the block of rank 0 at hop 1"),
              std::string::npos)
        << done.out;
    EXPECT_NE(done.out.find(got), std::string::npos) << done.out;
  }
}

TEST_P(MpiRing, EveryRankNamesTheFieldThatDiffersAndBothValues) {
  const std::vector<std::pair<std::string, std::string>> fields = {
      {"dtype", "dtype: expected the same on every rank, got f32 on rank 0 and bf16 on rank 1"},
      {"length", "query length: expected the same on every rank, got 64 on rank 0 and 65"},
      {"layout", "layout: expected the same on every rank, got contiguous on rank 0 and zigzag"},
      {"window", "left: expected the same on every rank, got unbounded on rank 0 and 5 on rank 1"},
      {"backend", "backend: expected the same on every rank, got cpu on rank 0 and reference"},
      {"cap", "logits_soft_cap: expected the same on every rank, got none on rank 0 and 30 on"},
      {"version", "version: expected the same on every rank, got 0.1.0 on rank 0 and 9.9.9 on"}};
  for (const auto& [what, expected] : fields) {
    const Launched done = run(3, {"mismatch", what});
    EXPECT_EQ(done.code, 0) << done.out;
    std::size_t named = 0;
    for (std::size_t at = 0; (at = done.out.find(expected, at)) != std::string::npos; ++at) ++named;
    EXPECT_EQ(named, 3U) << what << ": " << done.out;
  }
}

TEST_P(MpiRing, TheExampleGivesTheSameSumsOnAnyRing) {
  double first[2] = {0.0, 0.0};
  for (const int ranks : {1, 2, 3}) {
    const Launched done =
        launch(GetParam(), {.ranks = ranks},
               {std::string(RINGATTN_MPI_BIN) + "/example_mpi_ring_" + GetParam()});
    EXPECT_EQ(done.code, 0) << done.out;
    int said = 0;
    double sums[2] = {0.0, 0.0};
    const int read = std::sscanf(done.out.c_str(), "%d ranks: sum |out| %lf, sum |dkey| %lf", &said,
                                 &sums[0], &sums[1]);
    ASSERT_EQ(read, 3) << done.out;
    EXPECT_EQ(said, ranks);
    if (ranks == 1) std::copy(sums, sums + 2, first);
    // 128,000 floats whose last bits differ.
    for (int i = 0; i < 2; ++i) EXPECT_NEAR(sums[i], first[i], 1e-6 * first[i]) << done.out;
    EXPECT_GT(sums[0], 1000.0);
  }
}

TEST_P(MpiRing, RefusesWhatIsNoRing) {
  const Launched done = run(2, {"refusals"});
  EXPECT_EQ(done.code, 0) << done.out;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MpiRing);
INSTANTIATE_TEST_SUITE_P(On, MpiRing, ::testing::ValuesIn(flavours()),
                         [](const auto& p) { return p.param; });

/// Missing MPIs are missing tests: said aloud.
TEST(MpiFlavours, AreBothTested) {
  if (flavours().size() < 2) {
    GTEST_SKIP() << "only these MPIs are installed: '" << RINGATTN_MPI_FLAVOURS << "'";
  }
  SUCCEED();
}

}  // namespace
}  // namespace ringattn::testing
