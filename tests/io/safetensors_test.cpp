// SPDX-License-Identifier: Apache-2.0
// The .safetensors reader against well-formed and hostile files.
#include "io/safetensors.h"

#include <gtest/gtest.h>

#include "io/tensor_file.h"
#include "io_testing.h"
#include "ringattn/error.h"

namespace ringattn::testing {
namespace {

/// One bad file and a part of the message that refuses it.
struct Bad {
  const char* what;
  std::string bytes;
  const char* message;
};

void expect_refused(const std::vector<Bad>& files) {
  const TempFolder folder;
  const std::string path = folder / "bad.safetensors";
  for (const Bad& bad : files) {
    SCOPED_TRACE(bad.what);
    put(path, bad.bytes);
    expect_file_error([&] { read_tensors(path); }, "bad.safetensors", bad.message);
  }
}

std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

TEST(Safetensors, EveryDTypeComesBackAsItWasWritten) {
  const TempFolder folder;
  TensorMap tensors;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64,
                            DType::kInt32, DType::kInt64, DType::kBool}) {
    tensors[std::string("t_") + name(dtype)] = counting(dtype, {2, 3, 5});
  }
  tensors["empty"] = HostTensor(DType::kFloat32, {4, 0, 2});
  tensors["scalar"] = counting(DType::kFloat32, {});
  tensors["\"odd\\ name\n"] = counting(DType::kBool, {7});
  write_tensors(folder / "x.safetensors", tensors);
  const TensorMap again = read_tensors(folder / "x.safetensors");
  ASSERT_EQ(again.size(), tensors.size());
  for (const auto& [key, tensor] : tensors) expect_same(again.at(key), tensor);
}

TEST(Safetensors, RowsAreReadWithoutTheRest) {
  const TempFolder folder;
  const HostTensor whole = counting(DType::kInt32, {2, 5, 3});
  write_tensors(folder / "x.safetensors", {{"a", whole}});
  const TensorFile file(folder / "x.safetensors");
  const HostTensor rows = file.read_rows("a", 1, {.runs = {{2, 2}, {}}});
  ASSERT_EQ(rows.shape(), (std::vector<std::int64_t>{2, 2, 3}));
  for (int b = 0; b < 2; ++b) {
    for (int i = 0; i < 6; ++i) {
      EXPECT_EQ(rows.as<std::int32_t>()[b * 6 + i], whole.as<std::int32_t>()[b * 15 + 6 + i]);
    }
  }
  EXPECT_EQ(file.read_rows("a", 1, {.runs = {{5, 0}, {}}}).elements(), 0);
  EXPECT_THROW(file.read_rows("a", 1, {.runs = {{4, 2}, {}}}), Error);
  EXPECT_THROW(file.read_rows("a", 1, {.runs = {{-1, 2}, {}}}), Error);
  EXPECT_THROW(file.read_rows("a", 3, {}), Error);
}

TEST(Safetensors, MetadataIsCheckedAndIgnored) {
  const TempFolder folder;
  put(folder / "x.safetensors", safetensors(R"({"__metadata__":{"dtype":"x","n":"1"},)" +
                                                one("\"BOOL\"", "[2]", "[0,2]").substr(1),
                                            2));
  EXPECT_EQ(read_tensors(folder / "x.safetensors").size(), 1U);
  expect_refused(
      {{"number", safetensors(R"({"__metadata__":{"a":1}})", 0), "only strings, got 1"},
       {"object", safetensors(R"({"__metadata__":{"a":{}}})", 0), "only strings"},
       {"twice", safetensors(R"({"__metadata__":{"a":"1","a":"2"}})", 0), "duplicate key 'a'"}});
}

TEST(Safetensors, RefusesLengthsBeyondTheFile) {
  expect_refused({{"empty file", "", "too short"},
                  {"seven bytes", std::string(7, '\0'), "too short"},
                  {"2^64 - 1", std::string(8, '\xFF') + "{}", "a length of 18446744073709551615"},
                  {"one too long", little_endian(3, 8) + "{}", "expected at most 2 bytes"},
                  {"2^63", little_endian(std::uint64_t{1} << 63, 8) + "{}", "a length of"},
                  {"no header", little_endian(0, 8), "expected '{'"}});
}

TEST(Safetensors, RefusesHeadersThatAreNotJsonObjects) {
  expect_refused({{"array", safetensors("[]", 0), "expected '{'"},
                  {"space first", safetensors(" {}", 0), "expected '{'"},
                  {"truncated", safetensors(R"({"a":)", 0), "not valid JSON"},
                  {"text after", safetensors("{}x", 0), "not valid JSON"},
                  {"NUL hides text", safetensors(std::string("{}\0x", 4), 0), "a NUL byte"},
                  {"bad UTF-8", safetensors("{\"\xFF\":1}", 0), "not valid JSON"},
                  {"deep arrays", safetensors(R"({"a":)" + std::string(100000, '['), 0),
                   "expected an object with a dtype"},
                  {"deep objects", safetensors(R"({"a":{"shape":)" + std::string(100000, '{'), 0),
                   "an object"},
                  {"null", safetensors(R"({"a":null})", 0), "got null"}});
}

TEST(Safetensors, RefusesDuplicateNames) {
  const std::string entry = R"("a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]})";
  expect_refused(
      {{"tensor twice", safetensors("{" + entry + "," + entry + "}", 1), "duplicate name 'a'"},
       {"key twice",
        safetensors(R"({"a":{"dtype":"BOOL","dtype":"F32","shape":[1],"data_offsets":[0,1]}})", 1),
        "'a': duplicate key 'dtype'"},
       {"metadata twice", safetensors(R"({"__metadata__":{},"__metadata__":{}})", 0),
        "duplicate name '__metadata__'"}});
}

TEST(Safetensors, RefusesMissingAndUnknownKeys) {
  expect_refused({{"no dtype", safetensors(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1),
                   "missing key 'dtype'"},
                  {"no shape", safetensors(R"({"a":{"dtype":"BOOL","data_offsets":[0,1]}})", 1),
                   "missing key 'shape'"},
                  {"no offsets", safetensors(R"({"a":{"dtype":"BOOL","shape":[1]}})", 1),
                   "missing key 'data_offsets'"},
                  {"unknown", safetensors(R"({"a":{"order":"F"}})", 1), "unknown key 'order'"}});
}

TEST(Safetensors, RefusesUnknownDTypes) {
  for (const char* dtype : {"\"U8\"", "\"F8_E4M3\"", "\"f32\"", "\"\""}) {
    expect_refused({{dtype, safetensors(one(dtype, "[1]", "[0,1]"), 1), "'a': unknown dtype"}});
  }
  expect_refused({{"number", safetensors(one("1", "[1]", "[0,1]"), 1), "dtype: a string, got 1"}});
}

TEST(Safetensors, RefusesNegativeAndOverflowingShapes) {
  const std::string f = "\"F32\"";
  expect_refused(
      {{"negative", safetensors(one(f, "[-1]", "[0,4]"), 4), "shape: integers from 0"},
       {"fraction", safetensors(one(f, "[1.5]", "[0,4]"), 4), "got 1.5"},
       {"2^64", safetensors(one(f, "[18446744073709551616]", "[0,4]"), 4), "shape: integers"},
       {"2^63", safetensors(one(f, "[9223372036854775808]", "[0,4]"), 4), "shape: integers"},
       {"product", safetensors(one(f, "[4294967296,4294967296]", "[0,0]"), 0), "overflows 64 bits"},
       {"product with a zero", safetensors(one(f, "[4294967296,4294967296,0]", "[0,0]"), 0),
        "overflows 64 bits"},
       {"in bytes only", safetensors(one(f, "[4611686018427387904]", "[0,0]"), 0), "overflows"},
       {"nested", safetensors(one(f, "[[1]]", "[0,4]"), 4), "got an array"},
       {"string", safetensors(one(f, "[\"1\"]", "[0,4]"), 4), "got '1'"},
       {"no array", safetensors(one(f, "1", "[0,4]"), 4), "shape: an array, got 1"}});
}

TEST(Safetensors, RefusesOffsetsThatContradictTheShape) {
  const std::string f = "\"F32\"";
  expect_refused(
      {{"too few", safetensors(one(f, "[2]", "[0,4]"), 4), "expected 8 bytes for F32 [2]"},
       {"too many", safetensors(one(f, "[0]", "[0,4]"), 4), "expected 0 bytes"},
       {"backwards", safetensors(one(f, "[1]", "[4,0]"), 4), "a range of the 4 bytes"},
       {"beyond", safetensors(one(f, "[2]", "[0,8]"), 4), "a range of the 4 bytes"},
       {"2^64 - 1", safetensors(one(f, "[1]", "[0,18446744073709551615]"), 4), "a range of"},
       {"2^64", safetensors(one(f, "[1]", "[0,18446744073709551616]"), 4), "data_offsets: two"},
       {"wraps", safetensors(one(f, "[1]", "[18446744073709551612,0]"), 4), "a range of"},
       {"negative", safetensors(one(f, "[1]", "[-4,0]"), 4), "got -4"},
       {"one", safetensors(one(f, "[1]", "[4]"), 4), "fewer than two"},
       {"three", safetensors(one(f, "[1]", "[0,4,4]"), 4), "data_offsets: two"}});
}

TEST(Safetensors, RefusesOverlappingTensors) {
  expect_refused({{"overlap",
                   safetensors(R"({"a":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]},)"
                               R"("b":{"dtype":"BOOL","shape":[4],"data_offsets":[3,7]}})",
                               7),
                   "'b': data_offsets [3, 7] overlap 'a' at [0, 4]"},
                  {"same place",
                   safetensors(R"({"a":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]},)"
                               R"("b":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]}})",
                               4),
                   "overlap"}});
}

TEST(Safetensors, RefusesHolesAndTrailingBytes) {
  expect_refused({{"hole first", safetensors(one("\"BOOL\"", "[1]", "[1,2]"), 2),
                   "a hole of 1 bytes before 'a'"},
                  {"trailing", safetensors(one("\"BOOL\"", "[1]", "[0,1]"), 2),
                   "trailing bytes: the tensors end at byte 1 of 2"},
                  {"no tensors", safetensors("{}", 3), "trailing bytes"}});
}

TEST(Safetensors, NamesInMessagesFitOneLine) {
  const std::string long_name(1000, 'x');
  expect_refused({{"newline", safetensors(R"({"a\nb":1})", 0), "'a\\x0ab'"},
                  {"long", safetensors("{\"" + long_name + "\":1}", 0), "xxx...'"}});
}

TEST(Safetensors, ReadsTheRealExample) {
  const std::string path = examples() + "/data/minilm_packed_2k.safetensors";
  const TensorMap tensors = read_tensors(path);
  ASSERT_EQ(tensors.size(), 6U);
  const HostTensor& query = tensors.at("query");
  EXPECT_EQ(query.dtype(), DType::kBFloat16);
  EXPECT_EQ(query.shape(), (std::vector<std::int64_t>{1, 2048, 12, 32}));
  const HostTensor& ids = tensors.at("q_segment_ids");
  EXPECT_EQ(ids.dtype(), DType::kInt32);
  EXPECT_EQ(ids.as<std::int32_t>()[0], 0);
  EXPECT_EQ(ids.as<std::int32_t>()[511], 0);
  EXPECT_EQ(ids.as<std::int32_t>()[512], 1);
  EXPECT_EQ(ids.as<std::int32_t>()[2047], -1);
}

}  // namespace
}  // namespace ringattn::testing
