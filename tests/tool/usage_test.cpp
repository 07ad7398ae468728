// SPDX-License-Identifier: Apache-2.0
// The command line by itself: help, version, and every usage error with its exit code.
#include <gtest/gtest.h>

#include "io/tensor_file.h"
#include "tool_testing.h"

namespace ringattn::testing {
namespace {

constexpr int kUsage = 2;
constexpr int kUnsupported = 3;

TEST(Usage, TheToolAlonePrintsItsHelpAndFails) {
  const Ran ran = run_tool({});
  EXPECT_EQ(ran.code, kUsage);
  for (const char* command : {"run", "check", "bench", "plan", "info"}) {
    EXPECT_NE(ran.out.find(std::string("\n  ") + command + " "), std::string::npos) << command;
  }
  EXPECT_EQ(ran.err, "ringattn: error: expected a command: run, check, bench, plan or info\n");
}

TEST(Usage, HelpAndVersionAreNoErrors) {
  EXPECT_EQ(run_tool({"--help"}).code, 0);
  const Ran version = run_tool({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_TRUE(version.out.starts_with("ringattn ")) << version.out;
  for (const char* command : {"run", "check", "bench", "plan"}) {
    const Ran help = run_tool({command, "--help"});
    EXPECT_EQ(help.code, 0) << command;
    EXPECT_NE(help.out.find("Example"), std::string::npos) << help.out;
    EXPECT_EQ(help.err, "");
  }
}

TEST(Usage, UnknownCommandsAndOptionsAreRefused) {
  expect_error({"walk"}, kUsage, "walk");
  expect_error({"run", "in", "-o", "out", "--cuasal"}, kUsage, "--cuasal");
  expect_error({"run", "in", "-o", "out", "-z"}, kUsage, "-z");
  expect_error({"run", "in", "other", "-o", "out"}, kUsage, "IN: At Most 1");
  expect_error({"run", "-o", "out"}, kUsage, "IN");
  expect_error({"run", "in"}, kUsage, "-o");
  expect_error({"run", "in", "-o", "out", "--ring"}, kUsage, "--ring");
  expect_error({"run", "in", "-o", "out", "--ring", "1", "--ring", "2"}, kUsage, "--ring");
  expect_error({"info", "in"}, kUsage, "in");
}

TEST(Usage, ValuesOutsideTheirRangeAreRefused) {
  const auto refused = [](const std::string& option, const std::string& value,
                          const std::string& expected) {
    expect_error({"run", "in", "-o", "out", option + "=" + value}, kUsage,
                 option + ": expected " + expected);
  };
  for (const char* bad : {"0", "-1", "x", "1.5", "1x", "99999999999999999999", "1025"}) {
    refused("--ring", bad, "an integer from 1 to 1024");
  }
  for (const char* bad : {"-1", "1,-1", "1,2,3", "x", ",", "1,", ",1", "None", "1.5", "0x1"}) {
    refused("--sliding-window", bad, "W, L,R or none, each at least 0");
  }
  refused("--sliding-window", "9223372036854775808", "an integer");
  for (const char* bad : {"0", "-1", "x"}) refused("--chunk-size", bad, "an integer from 1");
  for (const char* bad : {"0", "-1", "nan", "inf", "1e39", "x"}) {
    refused("--logits-soft-cap", bad, "a number");
  }
  for (const char* bad : {"nan", "inf", "-inf", "1e39", "x"}) {
    refused("--softmax-scale", bad, "a number");
  }
  refused("--q-blocksize", "0", "an integer from 1");
  refused("--kv-blocksize", "-64", "an integer from 1");
  refused("--threads", "0", "an integer from 1");
  for (const char* bad : {"0", "-1", "nan", "1e99"}) refused("--timeout", bad, "a number");
  refused("--layout", "spiral", "one of contiguous, zigzag, striped, got 'spiral'");
  refused("--dtype", "f64", "one of f32, bf16, f16");
  refused("--grad-dtype", "bf16", "one of input, f32");
  refused("--backend", "tpu", "one of auto, reference, cpu, cuda");
  refused("--communicator", "udp", "one of local, mpi, nccl, peer");
}

TEST(Usage, CombinationsThatMeanNothingAreRefused) {
  expect_error({"check", "sq8_d4", "--backend", "reference", "--isa", "baseline"}, kUsage, "--isa");
  expect_error({"check", "sq8_d4", "--isa", "mmx"}, kUnsupported, "mmx is not an instruction set");
  expect_error({"run", "in", "-o", "out", "--grad-dtype", "f32"}, kUsage, "--grad-dtype");
  expect_error({"run", "in", "-o", "out", "--grad-dtype", "input"}, kUsage, "--grad-dtype");
  expect_error({"run", "in", "-o", "out", "--fused-backward"}, kUsage, "--fused-backward");
  expect_error({"check"}, kUsage, "expected IN, CASE or --random");
  expect_error({"check", "in", "--random", "3"}, kUsage, "--random");
  expect_error({"bench"}, kUsage, "CASE");
  expect_error({"plan"}, kUsage, "IN");
}

TEST(Usage, WhatThisBuildLacksIsUnsupported) {
  for (const char* communicator : {"nccl", "peer"}) {
    expect_error({"run", "in", "-o", "out", "--communicator", communicator}, kUnsupported,
                 std::string("--communicator ") + communicator);
  }
}

TEST(Usage, AToolWithoutMpiRefusesItByNameAndPlansForIt) {
  const TempFolder folder;
  const auto run = [&](const std::string& words) {
    const std::string command = std::string(RINGATTN_TOOL_WITHOUT_MPI) + " " + words + " > " +
                                (folder / "out") + " 2> " + (folder / "err");
    return WEXITSTATUS(std::system(command.c_str()));
  };
  for (const char* command : {"run in -o out", "check sq8_d4", "bench sq8_d4"}) {
    EXPECT_EQ(run(std::string(command) + " --communicator mpi"), kUnsupported);
    EXPECT_EQ(get(folder / "err"),
              "ringattn: error: --communicator mpi: this tool was built without MPI (CMake option "
              "RINGATTN_MPI)\n");
  }
  EXPECT_EQ(run("info --json"), 0);
  const auto info = nlohmann::json::parse(get(folder / "out"));
  EXPECT_EQ(info["communicators"][1]["name"], "mpi");
  EXPECT_FALSE(info["communicators"][1]["available"].get<bool>());
  EXPECT_NE(info["communicators"][1]["reason"], "");
  // Processes need buffers that threads do not need. (The cpu backend's threads keep other things.)
  const auto workspace = [&](const std::string& words) {
    EXPECT_EQ(run("plan sq65536_h8_d64_causal_w512,0_r64 --backend reference --json " + words), 0);
    const auto plan = nlohmann::json::parse(get(folder / "out"));
    return plan["forward"]["ranks"][0]["workspace_bytes"].get<std::int64_t>();
  };
  EXPECT_EQ(workspace("--communicator mpi") - workspace(""), 2 * (65536 / 64) * 8 * 64 * 2 * 4);
}

TEST(Usage, InfoNamesWhatIsAbsentAndWhy) {
  const nlohmann::json info = run_tool({"info", "--json"}).json();
  EXPECT_TRUE(info["version"].is_string());
  EXPECT_TRUE(info["build"]["compiler"].is_string());
  EXPECT_GE(info["devices"][0]["cores"].get<int>(), 1);
  const auto find = [&](const char* kind, const std::string& name) {
    int found = 0;
    nlohmann::json part;
    for (const auto& one : info[kind]) {
      if (one["name"] != name) continue;
      part = one;
      ++found;
    }
    EXPECT_EQ(found, 1) << kind << " " << name;
    return part;
  };
  EXPECT_TRUE(find("backends", "reference")["available"].get<bool>());
  EXPECT_TRUE(find("communicators", "local")["available"].get<bool>());
  const nlohmann::json cuda = find("backends", "cuda");
  EXPECT_EQ(cuda["available"].get<bool>(), cuda["reason"] == "");
  EXPECT_EQ(cuda["available"].get<bool>(), info["devices"].size() > 1);
  for (const char* absent : {"nccl", "peer"}) {
    EXPECT_FALSE(find("communicators", absent)["available"].get<bool>());
    EXPECT_NE(find("communicators", absent)["reason"], "");
  }
  const Ran text = run_tool({"info"});
  EXPECT_EQ(text.code, 0);
  EXPECT_NE(text.out.find("nccl       absent: "), std::string::npos) << text.out;
}

TEST(Usage, AFullStandardOutputIsAnError) {
  const TempFolder folder;
  const std::string command =
      std::string(RINGATTN_TOOL) + " info --json > /dev/full 2> " + (folder / "stderr");
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 5);
  EXPECT_NE(get(folder / "stderr").find("standard output"), std::string::npos);
}

}  // namespace
}  // namespace ringattn::testing
