// SPDX-License-Identifier: Apache-2.0
// `ringattn run` where all is well: formats, dtypes, options, JSON, and data that is not finite.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "io/tensor_file.h"
#include "tool_testing.h"

namespace ringattn::testing {
namespace {

/// Runs on these tensors; the tensors of OUT.
TensorMap results(const TensorMap& tensors, const Arguments& options) {
  const TempFolder folder;
  write_tensors(folder / "in.safetensors", tensors);
  Arguments arguments = {"run", folder / "in.safetensors", "-o", folder / "out.safetensors"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  const Ran ran = run_tool(arguments);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.err, "");
  return ran.code == 0 ? read_tensors(folder / "out.safetensors") : TensorMap();
}

std::vector<std::string> names(const TensorMap& tensors) {
  std::vector<std::string> out;
  for (const auto& [name, tensor] : tensors) out.push_back(name);
  return out;
}

void expect_close(const TensorMap& a, const TensorMap& b, double tolerance = 1e-5) {
  EXPECT_EQ(names(a), names(b));
  for (const auto& [name, tensor] : a) {
    SCOPED_TRACE(name);
    if (b.contains(name)) {
      EXPECT_LT(difference(tensor, b.at(name)), tolerance);
    }
  }
}

TEST(Run, EqualScoresGiveTheMeanOfTheValues) {
  TensorMap tensors = small_input();
  tensors["query"] = HostTensor(DType::kFloat32, {1, 8, 4, 3});
  const TensorMap out = results(tensors, {"--lse", "--ring", "2"});
  EXPECT_EQ(names(out), (std::vector<std::string>{"lse", "out"}));
  EXPECT_EQ(out.at("out").shape(), (std::vector<std::int64_t>{1, 8, 4, 5}));
  EXPECT_EQ(out.at("lse").shape(), (std::vector<std::int64_t>{1, 4, 8}));
  const float* value = tensors.at("value").as<float>();
  float mean = 0;
  for (int k = 0; k < 6; ++k) mean += value[k * 10 + 5] / 6;  // kv head 1, first column
  EXPECT_NEAR(out.at("out").as<float>()[3 * 5], mean, 1e-6);  // query 0, head 3
  EXPECT_NEAR(out.at("lse").as<float>()[0], std::log(6.0), 1e-6);
}

TEST(Run, WritesWhatWasAskedForAndNothingElse) {
  TensorMap tensors = small_input();
  EXPECT_EQ(names(results(tensors, {})), std::vector<std::string>{"out"});
  tensors["softmax_aux"] = floats({3}, {0.5F, -1.0F, 2.0F});
  const TensorMap out = results(tensors, {"--backward"});
  EXPECT_EQ(names(out),
            (std::vector<std::string>{"dkey", "dquery", "dsoftmax_aux", "dvalue", "lse", "out"}));
  EXPECT_EQ(out.at("dquery").shape(), tensors.at("query").shape());
  EXPECT_EQ(out.at("dkey").shape(), tensors.at("key").shape());
  EXPECT_EQ(out.at("dvalue").shape(), tensors.at("value").shape());
  EXPECT_EQ(out.at("dsoftmax_aux").shape(), (std::vector<std::int64_t>{3}));
}

TEST(Run, EveryRingAndLayoutGivesTheSame) {
  const TensorMap tensors = small_input();
  const Arguments options = {"--backward",        "--causal", "--sliding-window",    "3,0",
                             "--logits-soft-cap", "2",        "--softmax-scale=-0.5"};
  const TensorMap expected = results(tensors, options);
  for (const char* layout : {"contiguous", "zigzag", "striped"}) {
    for (const char* ring : {"2", "3", "8"}) {
      Arguments more = options;
      more.insert(more.end(), {"--layout", layout, "--ring", ring});
      expect_close(results(tensors, more), expected);
    }
  }
}

TEST(Run, FoldersOfNpyHoldTheSame) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const TempFolder folder;
    const TensorMap tensors = small_input(dtype);
    write_tensors(folder / "in", tensors);
    const Ran ran = run_tool({"run", folder / "in", "-o", folder / "out/", "--backward"});
    ASSERT_EQ(ran.code, 0) << ran.err;
    const TensorMap out = read_tensors(folder / "out");
    const TensorMap expected = results(tensors, {"--backward"});
    ASSERT_EQ(names(out), names(expected));
    for (const auto& [name, tensor] : out) expect_same(tensor, expected.at(name));
    EXPECT_EQ(folder.entries(), 2);
  }
}

TEST(Run, ResultsHaveTheirDTypes) {
  TensorMap tensors = small_input(DType::kBFloat16);
  tensors["softmax_aux"] = floats({4}, {0, 1, 2, 3});
  TensorMap out = results(tensors, {"--backward"});
  for (const char* name : {"out", "dquery", "dkey", "dvalue"}) {
    EXPECT_EQ(out.at(name).dtype(), DType::kBFloat16) << name;
  }
  EXPECT_EQ(out.at("lse").dtype(), DType::kFloat32);
  EXPECT_EQ(out.at("dsoftmax_aux").dtype(), DType::kFloat32);
  out = results(tensors, {"--backward", "--grad-dtype", "f32"});
  EXPECT_EQ(out.at("out").dtype(), DType::kBFloat16);
  EXPECT_EQ(out.at("dkey").dtype(), DType::kFloat32);
  out = results(tensors, {"--backward", "--dtype", "f16"});
  EXPECT_EQ(out.at("out").dtype(), DType::kFloat16);
  EXPECT_EQ(out.at("dvalue").dtype(), DType::kFloat16);
}

TEST(Run, AMaskMeansWhatItsOptionsMean) {
  TensorMap tensors = small_input();
  const TensorMap expected = results(tensors, {"--backward", "--causal"});
  HostTensor flat(DType::kBool, {8, 6});
  HostTensor per_head(DType::kBool, {4, 8, 6});
  for (int h = 0; h < 4; ++h) {
    for (int q = 0; q < 8; ++q) {
      for (int k = 0; k < 6; ++k) {
        flat.as<std::uint8_t>()[q * 6 + k] = k <= q ? 1 : 0;
        per_head.as<std::uint8_t>()[(h * 8 + q) * 6 + k] = k <= q ? 1 : 0;
      }
    }
  }
  tensors["mask"] = flat;
  expect_close(results(tensors, {"--backward", "--ring", "3"}), expected);
  tensors["mask"] = per_head;
  expect_close(results(tensors, {"--backward", "--ring", "3", "--layout=zigzag"}), expected);
}

TEST(Run, PositionsReplaceTheOrderOfTheFile) {
  TensorMap tensors = small_input();
  const TensorMap expected = results(tensors, {"--causal", "--backward"});
  tensors["q_positions"] = longs({8}, {10, 11, 12, 13, 14, 15, 16, 17});
  tensors["kv_positions"] = ints({6}, {10, 11, 12, 13, 14, 15});
  expect_close(results(tensors, {"--causal", "--backward", "--ring", "2"}), expected);
  tensors["kv_positions"] = ints({6}, {18, 18, 18, 18, 18, 18});
  const TensorMap blind = results(tensors, {"--causal", "--lse"});
  EXPECT_EQ(blind.at("lse").as<float>()[0], -std::numeric_limits<float>::infinity());
  EXPECT_EQ(blind.at("out").as<float>()[0], 0.0F);
}

TEST(Run, SegmentIdsOfEitherWidthMeanTheSame) {
  TensorMap tensors = small_input();
  tensors["q_segment_ids"] = ints({1, 8}, {0, 0, 0, 1, 1, 7, 7, -1});
  tensors["kv_segment_ids"] = ints({1, 6}, {0, 0, 1, 1, 7, -1});
  const TensorMap narrow = results(tensors, {"--backward"});
  tensors["q_segment_ids"] = longs({1, 8}, {0, 0, 0, 1, 1, 7, 7, -1});
  tensors["kv_segment_ids"] = longs({1, 6}, {0, 0, 1, 1, 7, -1});
  expect_close(results(tensors, {"--backward", "--ring=4"}), narrow);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(narrow.at("out").as<float>()[7 * 20 + i], 0.0F);
}

TEST(Run, NaNAndInfReachOnlyTheRowsThatSeeThem) {
  TensorMap tensors = small_input();
  const TensorMap clean = results(tensors, {"--causal", "--lse"});
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    tensors["key"].as<float>()[4 * 6] = bad;  // key 4, kv head 0: query heads 0 and 1
    for (const char* ring : {"1", "4"}) {
      const TensorMap out = results(tensors, {"--causal", "--lse", "--ring", ring});
      for (int q = 0; q < 8; ++q) {
        for (int h = 0; h < 4; ++h) {
          const float x = out.at("out").as<float>()[(q * 4 + h) * 5];
          const float y = clean.at("out").as<float>()[(q * 4 + h) * 5];
          if (q < 4 || h > 1) {
            EXPECT_NEAR(x, y, 1e-5) << q << " " << h;
          } else if (bad != bad) {
            EXPECT_TRUE(std::isnan(x)) << q << " " << h;
          }
        }
      }
    }
  }
}

TEST(Run, JsonSaysWhatWasDone) {
  const TempFolder folder;
  write_tensors(folder / "in.safetensors", small_input());
  const Arguments arguments = {"run",
                               folder / "in.safetensors",
                               "-o",
                               folder / "out",
                               "--json",
                               "--causal",
                               "--ring=4",
                               "--layout",
                               "zigzag",
                               "--backward",
                               "--sliding-window",
                               "5,none",
                               "--threads",
                               "2"};
  const Ran ran = run_tool(arguments);
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.err, "");
  const nlohmann::json json = ran.json();
  EXPECT_EQ(json["options"]["causal"], true);
  EXPECT_EQ(json["options"]["sliding_window"], nlohmann::json::parse("[5, null]"));
  EXPECT_EQ(json["options"]["threads"], 2);
  EXPECT_EQ(json["options"]["chunk_size"], nullptr);
  EXPECT_EQ(json["shapes"]["query"], nlohmann::json::parse("[1, 8, 4, 3]"));
  EXPECT_EQ(json["ring"],
            nlohmann::json::parse(R"({"size": 4, "layout": "zigzag", "communicator": "local"})"));
  EXPECT_TRUE(json["backend"]["name"].is_string());
  EXPECT_NE(json["backend"]["reason"], "");
  for (const char* pass : {"forward", "backward"}) {
    const nlohmann::json& p = json[pass];
    ASSERT_EQ(p["ranks"].size(), 4U);
    EXPECT_LE(p["hops"].get<int>(), 3 + (pass[0] == 'b' ? 1 : 0)) << "K and V travel N-1 hops";
    EXPECT_GT(p["bytes"].get<int>(), 0);
    EXPECT_GT(p["flops"].get<int>(), 0);
    EXPECT_GE(p["ms"].get<double>(), 0.0);
    EXPECT_GE(p["tiles"]["visited"].get<int>(), p["tiles"]["full"].get<int>());
    int bytes = 0;
    for (const auto& rank : p["ranks"]) bytes += rank["bytes"].get<int>();
    EXPECT_EQ(p["bytes"], bytes);
  }
}

TEST(Run, ForwardAloneHasNoBackwardInItsJson) {
  const TempFolder folder;
  write_tensors(folder / "in.safetensors", small_input());
  const nlohmann::json json =
      run_tool({"run", folder / "in.safetensors", "-o", folder / "out", "--json"}).json();
  EXPECT_EQ(json["backward"], nullptr);
  EXPECT_EQ(json["forward"]["hops"], 0);
  EXPECT_EQ(json["forward"]["bytes"], 0);
}

TEST(Run, QuietPrintsNothingAndTheTableSaysWhereOutputIs) {
  const TempFolder folder;
  write_tensors(folder / "in.safetensors", small_input());
  Arguments arguments = {"run", folder / "in.safetensors", "-o", folder / "out"};
  EXPECT_NE(run_tool(arguments).out.find("wrote " + (folder / "out")), std::string::npos);
  arguments.push_back("--quiet");
  EXPECT_EQ(run_tool(arguments).out, "");
}

}  // namespace
}  // namespace ringattn::testing
