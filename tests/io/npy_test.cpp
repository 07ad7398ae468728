// SPDX-License-Identifier: Apache-2.0
// The .npy reader against files as NumPy writes them, and hostile ones.
#include "io/npy.h"

#include <gtest/gtest.h>

#include "io/tensor_file.h"
#include "io_testing.h"

namespace ringattn::testing {
namespace {

HostTensor read_one(const std::string& path) {
  const File file = File::open(path);
  return read_tensor(file, open_npy(file));
}

struct Bad {
  const char* what;
  std::string bytes;
  const char* message;
};

void expect_refused(const std::vector<Bad>& files) {
  const TempFolder folder;
  const std::string path = folder / "bad.npy";
  for (const Bad& bad : files) {
    SCOPED_TRACE(bad.what);
    put(path, bad.bytes);
    expect_file_error([&] { read_one(path); }, "bad.npy", bad.message);
  }
}

std::string header(const std::string& descr, const std::string& shape,
                   const std::string& fortran = "False") {
  return "{'descr': " + descr + ", 'fortran_order': " + fortran + ", 'shape': " + shape + ", }\n";
}

TEST(Npy, EveryDTypeComesBackAsItWasWritten) {
  const TempFolder folder;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64,
                            DType::kInt32, DType::kInt64, DType::kBool}) {
    for (const auto& shape : std::vector<std::vector<std::int64_t>>{{}, {3}, {2, 3}, {4, 0, 2}}) {
      const HostTensor tensor = counting(dtype, shape);
      write_tensors(folder / "x", {{"a", tensor}});
      expect_same(read_tensors(folder / "x").at("a"), tensor);
    }
  }
}

TEST(Npy, WritesWhatNumpyWrites) {
  const TempFolder folder;
  write_tensors(folder / "x",
                {{"a", counting(DType::kFloat32, {3})}, {"b", counting(DType::kBFloat16, {2, 1})}});
  const std::string a = get(folder / "x/a.npy");
  EXPECT_EQ(a.size(), 128U + 12U);
  EXPECT_EQ(a.substr(0, 8), std::string("\x93NUMPY\1\0", 8));
  EXPECT_EQ(a.substr(10, 58), "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), } ");
  EXPECT_EQ(a[127], '\n');
  EXPECT_EQ(get(folder / "x/b.npy").substr(10, 60),
            "{'descr': '<V2', 'fortran_order': False, 'shape': (2, 1), } ");
}

TEST(Npy, ReadsAllThreeVersionsAndOtherSpellings) {
  const TempFolder folder;
  for (const char major : {'\1', '\2', '\3'}) {
    put(folder / "a.npy", npy(header("'<i4'", "(2, 3)"), 24, major));
    EXPECT_EQ(read_one(folder / "a.npy").shape(), (std::vector<std::int64_t>{2, 3}));
  }
  put(folder / "a.npy", npy("{\"shape\":(2,3),\"descr\":\"<i4\",\"fortran_order\":False}", 24));
  EXPECT_EQ(read_one(folder / "a.npy").dtype(), DType::kInt32);
}

TEST(Npy, RefusesWhatIsNoNpyFile) {
  expect_refused({{"empty", "", "too short"},
                  {"magic only", std::string("\x93NUMPY"), "too short"},
                  {"text", "this is a text file", "expected a .npy file"},
                  {"zip", std::string("PK\3\4") + std::string(100, 'x'), "expected a .npy file"},
                  {"version 4", npy(header("'<f4'", "(1,)"), 4, 4), "version 1.0, 2.0 or 3.0"},
                  {"version 0", npy(header("'<f4'", "(1,)"), 4, 0), "got 0.0"}});
}

TEST(Npy, RefusesLengthsBeyondTheFile) {
  const std::string two = std::string("\x93NUMPY\2\0", 8);
  expect_refused({{"2^32 - 1", two + "\xFF\xFF\xFF\xFF{}", "a length of 4294967295"},
                  {"65535", std::string("\x93NUMPY\1\0", 8) + "\xFF\xFF{}", "a length of 65535"},
                  {"cut in the length", two + "\x10", "too short"},
                  {"long header", npy(std::string(70000, ' '), 0, 2), "a length of 70000"}});
}

TEST(Npy, RefusesOtherDTypesWithTheReason) {
  expect_refused({{"big-endian", npy(header("'>f4'", "(1,)"), 4), "expected little-endian data"},
                  {"objects", npy(header("'|O'", "(1,)"), 8), "not an array of objects"},
                  {"structure", npy(header("[('a', '<f4')]", "(1,)"), 4), "a structured one"},
                  {"uint8", npy(header("'|u1'", "(1,)"), 1), "unknown dtype"},
                  {"void of another size", npy(header("'<V3'", "(1,)"), 3), "unknown dtype"},
                  {"string", npy(header("'<U4'", "(1,)"), 16), "unknown dtype"},
                  {"empty", npy(header("''", "(1,)"), 4), "got descr ''"},
                  {"number", npy(header("4", "(1,)"), 4), "expected descr in quotes"}});
}

TEST(Npy, RefusesFortranOrder) {
  expect_refused({{"fortran", npy(header("'<f4'", "(2, 2)", "True"), 16), "got fortran_order True"},
                  {"number", npy(header("'<f4'", "(2, 2)", "0"), 16), "expected True or False"}});
}

TEST(Npy, RefusesNegativeAndOverflowingShapes) {
  expect_refused(
      {{"negative", npy(header("'<f4'", "(-1,)"), 4), "sizes >= 0"},
       {"2^63", npy(header("'<f4'", "(9223372036854775808,)"), 4), "a size overflows"},
       {"2^64 + 1", npy(header("'<f4'", "(18446744073709551617,)"), 4), "a size overflows"},
       {"product", npy(header("'<f4'", "(4294967296, 4294967296)"), 0), "overflows 64 bits"},
       {"with a zero", npy(header("'<f4'", "(4294967296, 4294967296, 0)"), 0), "overflows"},
       {"bytes", npy(header("'<f4'", "(4611686018427387904,)"), 0), "overflows 64 bits"},
       {"no tuple", npy(header("'<f4'", "3"), 12), "expected '('"},
       {"brackets only", npy(header("'<f4'", "(3)"), 12), "expected a tuple"},
       {"no number", npy(header("'<f4'", "(a,)"), 12), "expected an integer"},
       {"no comma", npy(header("'<f4'", "(1 2)"), 12), "expected ',' or ')'"}});
}

TEST(Npy, RefusesDataOfAnotherLength) {
  expect_refused(
      {{"truncated", npy(header("'<f4'", "(2, 2)"), 15), "expected 16 bytes of data, got 15"},
       {"none", npy(header("'<f4'", "(2, 2)"), 0), "got 0"},
       {"trailing", npy(header("'<f4'", "(2, 2)"), 17), "got 17"}});
}

TEST(Npy, RefusesMalformedDictionaries) {
  expect_refused(
      {{"duplicate", npy("{'descr': '<f4', 'descr': '<f2', }", 0), "duplicate key 'descr'"},
       {"missing", npy("{'descr': '<f4', 'fortran_order': False}", 0), "missing key 'shape'"},
       {"unknown", npy("{'descr': '<f4', 'order': 'F'}", 0), "unknown key 'order'"},
       {"no end", npy("{'descr': '<f4'", 0), "expected '}'"},
       {"no string end", npy("{'descr", 0), "a string without end"},
       {"escape", npy("{'de\\x73cr': '<f4'}", 0), "an escape"},
       {"text after", npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()} x", 4),
        "text after the dictionary"},
       {"empty", npy("", 0), "expected '{'"}});
}

}  // namespace
}  // namespace ringattn::testing
