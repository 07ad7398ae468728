// SPDX-License-Identifier: Apache-2.0
// `--backend cuda`: what it refuses, everywhere; what it does, where there is a GPU.
#include <gtest/gtest.h>

#include "io/tensor_file.h"
#include "tool_testing.h"

namespace ringattn::testing {
namespace {

constexpr int kUnsupported = 3;
constexpr int kUsage = 2;

nlohmann::json cuda_backend() {
  const nlohmann::json info = run_tool({"info", "--json"}).json();
  for (const auto& backend : info["backends"]) {
    if (backend["name"] == "cuda") return backend;
  }
  ADD_FAILURE() << "info does not speak of cuda";
  return nullptr;
}

TEST(ToolCuda, WithoutAGpuOrABuildForItEveryCommandSaysWhatIsExpected) {
  const nlohmann::json cuda = cuda_backend();
  if (cuda["available"].get<bool>()) GTEST_SKIP() << "there is a GPU: nothing to refuse";
  const std::string refusal = "--backend cuda: " + cuda["reason"].get<std::string>() + "; expected";
  for (const Arguments& words : {Arguments{"run", "in", "-o", "out"},
                                 {"check", "sq8_d4"},
                                 {"bench", "sq8_d4"},
                                 {"plan", "sq8_d4"}}) {
    Arguments arguments = words;
    arguments.insert(arguments.end(), {"--backend", "cuda"});
    expect_error(arguments, kUnsupported, refusal);
  }
}

TEST(ToolCuda, ProcessesAndInstructionSetsAreRefusedByName) {
  expect_error({"plan", "sq8_d4_r2", "--backend", "cuda", "--communicator", "mpi"}, kUnsupported,
               "--backend cuda: expected with --communicator local");
  if (cuda_backend()["available"].get<bool>()) {
    expect_error({"check", "sq8_d4", "--backend", "cuda", "--isa", "avx2"}, kUsage, "--isa");
  }
}

class ToolOnAGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    const nlohmann::json cuda = cuda_backend();
    if (!cuda["available"].get<bool>()) {
      GTEST_SKIP() << "no test on a GPU: " << cuda["reason"].get<std::string>();
    }
  }
};

TEST_F(ToolOnAGpu, RunWritesWhatTheCpuWritesWithinRounding) {
  const TempFolder folder;
  TensorMap tensors = small_input();
  tensors["softmax_aux"] = floats({4}, {0.5F, -1.0F, 2.0F, 0.25F});
  write_tensors(folder / "in.safetensors", tensors);
  const auto results = [&](const Arguments& options) {
    Arguments arguments = {"run",       folder / "in.safetensors",
                           "-o",        folder / "out.safetensors",
                           "--json",    "--causal",
                           "--backward"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const Ran ran = run_tool(arguments);
    EXPECT_EQ(ran.code, 0) << ran.err;
    const auto json = ran.json();
    EXPECT_EQ(json["backend"]["name"], options[1]);
    EXPECT_GT(json["backward"]["ms"].get<double>(), 0.0);
    return read_tensors(folder / "out.safetensors");
  };
  const TensorMap expected = results({"--backend", "cpu"});
  for (const char* ring : {"1", "3"}) {
    const TensorMap got = results({"--backend", "cuda", "--ring", ring, "--layout", "zigzag"});
    ASSERT_EQ(got.size(), expected.size());
    for (const auto& [name, tensor] : got) {
      SCOPED_TRACE(name);
      EXPECT_LT(difference(tensor, expected.at(name)), 1e-5);
    }
  }
}

TEST_F(ToolOnAGpu, CheckComparesFilesAndCasesWithFloat64) {
  const TempFolder folder;
  write_tensors(folder / "in.safetensors", small_input());
  const std::string a_case = "b2_sq150_h4x2_d64_bf16_causal_w40,0_seg_sink_r3_bwd";
  const Ran ran = run_tool(
      {"check", folder / "in.safetensors", a_case, "--backend", "cuda", "--backward", "--json"});
  EXPECT_EQ(ran.code, 0) << ran.err << ran.out;
  EXPECT_EQ(ran.json()["checked"], 2);
  for (const auto& one : ran.json()["results"]) EXPECT_EQ(one["backend"]["name"], "cuda");
}

TEST_F(ToolOnAGpu, BenchNamesTheGpuItsDriverAndItsClock) {
  const Ran ran = run_tool({"bench", "sq256_h2_d64_bf16_causal_r2_bwd", "--backend", "cuda",
                            "--repeats", "3", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto json = ran.json();
  const auto& gpu = json["machine"]["gpu"];
  for (const char* text : {"name", "architecture", "driver", "cuda"}) {
    EXPECT_NE(gpu[text].get<std::string>(), "") << text;
  }
  EXPECT_GT(gpu["sm_clock_max_mhz"].get<int>(), 0);
  ASSERT_EQ(json["results"].size(), 2U);
  for (const auto& result : json["results"]) {
    EXPECT_EQ(result["backend"], "cuda");
    EXPECT_EQ(result["isa"], gpu["architecture"]);
    EXPECT_TRUE(result["peak_gflops"].is_null());
    EXPECT_TRUE(result.contains("sm_clock_mhz"));
    EXPECT_GT(result["ms_median"].get<double>(), 0.0);
  }
}

TEST_F(ToolOnAGpu, PlanCountsWhatRunDoes) {
  const Arguments words = {"sq512_h2_d64_bf16_seg_causal_zigzag_r4", "--backend", "cuda", "--json"};
  const auto json = [&](const char* command) {
    Arguments arguments = words;
    arguments.insert(arguments.begin(), command);
    const Ran ran = run_tool(arguments);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.json();
  };
  const auto plan = json("plan"), check = json("check");
  for (const char* sum : {"hops", "bytes", "tiles", "flops"}) {
    EXPECT_EQ(plan["forward"][sum], check["forward"][sum]) << sum;
  }
}

}  // namespace
}  // namespace ringattn::testing
