// SPDX-License-Identifier: Apache-2.0
// What IN holds: every tensor that is missing, unknown or wrong is refused by name, and nothing is
// written.
#include <gtest/gtest.h>

#include "io/tensor_file.h"
#include "tool_testing.h"

namespace ringattn::testing {
namespace {

constexpr int kUsage = 2;
constexpr int kUnsupported = 3;

/// The small input with `changes` and `without` some tensors is refused.
void expect_refused(const TensorMap& changes, int code, const std::string& message,
                    const Arguments& options = {}, const Arguments& without = {}) {
  const TempFolder folder;
  TensorMap tensors = small_input();
  for (const auto& [name, tensor] : changes) tensors[name] = tensor;
  for (const std::string& name : without) tensors.erase(name);
  write_tensors(folder / "in.safetensors", tensors);
  Arguments arguments = {"run", folder / "in.safetensors", "-o", folder / "out.safetensors"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  expect_error(arguments, code, message);
  expect_error(arguments, code, "(in " + (folder / "in.safetensors") + ")");
  EXPECT_EQ(folder.entries(), 1);
}

HostTensor zeros(DType dtype, std::vector<std::int64_t> shape) { return {dtype, std::move(shape)}; }
HostTensor f32(std::vector<std::int64_t> shape) { return zeros(DType::kFloat32, std::move(shape)); }

TEST(Input, MissingAndUnknownTensorsAreRefused) {
  for (const char* name : {"query", "key", "value"}) {
    expect_refused({}, kUsage, std::string(name) + ": expected this tensor, got none", {}, {name});
  }
  expect_refused({}, kUsage, "dout: expected this tensor, for --backward", {"--backward"},
                 {"dout"});
  expect_refused({{"queries", f32({1})}}, kUsage, "unknown tensor: expected only query");
  expect_refused({{"bias", f32({1, 4, 8, 6})}}, kUnsupported, "bias");
}

TEST(Input, Float64DataIsUnsupported) {
  expect_refused({{"query", zeros(DType::kFloat64, {1, 8, 4, 3})}}, kUnsupported,
                 "query: expected dtype f32, bf16 or f16, got f64");
  expect_refused({{"value", zeros(DType::kFloat64, {1, 6, 2, 5})}}, kUnsupported, "value");
  expect_refused({{"softmax_aux", zeros(DType::kFloat64, {4})}}, kUnsupported, "softmax_aux");
  expect_refused({{"query", zeros(DType::kFloat64, {1, 8, 4, 3})}}, kUnsupported, "query",
                 {"--dtype", "f32"});
}

TEST(Input, WrongAndMixedDTypesAreRefused) {
  expect_refused({{"query", zeros(DType::kInt32, {1, 8, 4, 3})}}, kUsage,
                 "query: expected dtype f32, bf16 or f16, got i32");
  expect_refused({{"key", zeros(DType::kBFloat16, {1, 6, 2, 3})}}, kUsage,
                 "key: expected dtype f32, as query has, got bf16");
  expect_refused({{"dout", zeros(DType::kFloat16, {1, 8, 4, 5})}}, kUsage, "dout: expected dtype",
                 {"--backward"});
  expect_refused({{"q_segment_ids", f32({1, 8})}}, kUsage,
                 "q_segment_ids: expected dtype i32 or i64, got f32");
  expect_refused({{"q_positions", zeros(DType::kBool, {8})}}, kUsage,
                 "q_positions: expected dtype");
  expect_refused({{"mask", zeros(DType::kInt32, {8, 6})}}, kUsage, "mask: expected dtype bool");
  expect_refused({{"softmax_aux", zeros(DType::kInt32, {4})}}, kUsage, "softmax_aux");
}

TEST(Input, WrongShapesAreRefused) {
  expect_refused({{"query", f32({8, 4, 3})}}, kUsage, "query: expected 4 dimensions");
  expect_refused({{"query", f32({1, 1, 8, 4, 3})}}, kUsage, "query: expected 4 dimensions");
  expect_refused({{"key", f32({2, 6, 2, 3})}}, kUsage,
                 "key: expected shape [1, 6, 2, 3], got [2, 6, 2, 3]");
  expect_refused({{"key", f32({1, 6, 2, 4})}}, kUsage, "key: expected shape [1, 6, 2, 3]");
  expect_refused({{"value", f32({1, 7, 2, 5})}}, kUsage, "value: expected shape [1, 6, 2, 5]");
  expect_refused({{"value", f32({1, 6, 1, 5})}}, kUsage, "value: expected shape [1, 6, 2, 5]");
  expect_refused({{"dout", f32({1, 8, 4, 3})}}, kUsage, "dout: expected shape [1, 8, 4, 5]",
                 {"--backward"});
  expect_refused({{"key", f32({1, 6, 3, 3})}, {"value", f32({1, 6, 3, 5})}}, kUsage,
                 "key: expected heads that divide the 4 of query, got 3");
}

TEST(Input, EmptyTensorsAreRefused) {
  expect_refused({{"query", f32({1, 0, 4, 3})}}, kUsage, "query: expected at least one element");
  expect_refused({{"query", f32({1, 8, 0, 3})}}, kUsage, "query: expected at least one element");
  expect_refused({{"key", f32({1, 6, 0, 3})}}, kUsage, "key: expected at least one element");
  expect_refused({{"value", f32({1, 6, 2, 0})}}, kUsage, "value: expected at least one element");
}

TEST(Input, WrongIdsAndPositionsAreRefused) {
  const HostTensor ids = ints({1, 8}, {0, 0, 0, 0, 1, 1, 1, -1});
  expect_refused({{"q_segment_ids", ids}}, kUsage,
                 "kv_segment_ids: expected this tensor beside q_segment_ids, got none");
  expect_refused({{"kv_segment_ids", ids}}, kUsage, "kv_segment_ids: expected shape [1, 6]");
  expect_refused({{"q_segment_ids", longs({1, 8}, {0, 0, 0, 0, 0, 0, 0, 1LL << 31})},
                  {"kv_segment_ids", ints({1, 6}, {0, 0, 0, 0, 0, 0})}},
                 kUsage, "q_segment_ids: expected values that fit 32 bits, got 2147483648");
  expect_refused({{"q_positions", zeros(DType::kInt32, {8})}}, kUsage,
                 "kv_positions: expected this tensor beside q_positions");
  expect_refused(
      {{"q_positions", zeros(DType::kInt32, {1, 8})}, {"kv_positions", zeros(DType::kInt32, {6})}},
      kUsage, "q_positions: expected shape [8], got [1, 8]");
}

TEST(Input, WrongSinksAreRefused) {
  expect_refused({{"softmax_aux", f32({0})}}, kUsage,
                 "softmax_aux: expected shape [4], [S] or [4, S], got [0]");
  expect_refused({{"softmax_aux", f32({4, 0})}}, kUsage, "got [4, 0]");
  expect_refused({{"softmax_aux", f32({3, 2})}}, kUsage, "got [3, 2]");
  expect_refused({{"softmax_aux", f32({})}}, kUsage, "got []");
  expect_refused({{"softmax_aux", f32({4, 1, 1})}}, kUsage, "got [4, 1, 1]");
}

TEST(Input, WrongMasksAreRefused) {
  expect_refused({{"mask", zeros(DType::kBool, {6, 8})}}, kUsage,
                 "mask: expected shape [8, 6] or [4, 8, 6], got [6, 8]");
  expect_refused({{"mask", zeros(DType::kBool, {1, 8, 6})}}, kUsage, "got [1, 8, 6]");
  expect_refused({{"mask", zeros(DType::kBool, {8})}}, kUsage, "got [8]");
  for (const char* option : {"--causal", "--sliding-window=2", "--chunk-size=4"}) {
    expect_refused({{"mask", zeros(DType::kBool, {8, 6})}}, kUsage,
                   "mask: expected no --causal, --sliding-window or --chunk-size", {option});
  }
}

TEST(Input, PositionsOutsideADenseMaskAreRefused) {
  expect_refused({{"mask", zeros(DType::kBool, {8, 6})},
                  {"q_positions", ints({8}, {0, 1, 2, 3, 4, 5, 6, 8})},
                  {"kv_positions", ints({6}, {0, 1, 2, 3, 4, 5})}},
                 kUsage, "q_positions: expected positions in [0, 8)");
}

}  // namespace
}  // namespace ringattn::testing
