// SPDX-License-Identifier: Apache-2.0
// Files that cannot be read or written: exit code 5, one line, no partial output.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "io/tensor_file.h"
#include "tool_testing.h"

namespace ringattn::testing {
namespace {

namespace fs = std::filesystem;
constexpr int kFile = 5;

TEST(Files, MalformedSafetensorsAreFileErrors) {
  const auto one = [](const std::string& rest) { return R"({"query":{)" + rest + "}}"; };
  const std::pair<std::string, const char*> files[] = {
      {"", "too short"},
      {std::string(8, '\xFF') + "{}", "a length of 18446744073709551615"},
      {safetensors("{", 0), "not valid JSON"},
      {safetensors(one(R"("dtype":"U8","shape":[1],"data_offsets":[0,1])"), 1), "unknown dtype"},
      {safetensors(one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4), "got -1"},
      {safetensors(one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0),
       "overflows"},
      {safetensors(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), 4),
       "a range of the 4"},
      {safetensors(one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"), 9), "trailing bytes"},
      {safetensors(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), 8), "a hole"},
      {safetensors(R"({"query":{},"query":{}})", 0), "missing key"},
      {safetensors(R"({"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]},)"
                   R"("b":{"dtype":"BOOL","shape":[2],"data_offsets":[1,3]}})",
                   3),
       "overlap"},
      {safetensors(R"({"a":{"dtype":"BOOL","shape":[0],"data_offsets":[0,0]},)"
                   R"("a":{"dtype":"BOOL","shape":[0],"data_offsets":[0,0]}})",
                   0),
       "duplicate name"}};
  for (const auto& [bytes, message] : files) {
    const TempFolder folder;
    put(folder / "in.safetensors", bytes);
    expect_error({"run", folder / "in.safetensors", "-o", folder / "out"}, kFile, message);
    EXPECT_EQ(folder.entries(), 1);
  }
}

TEST(Files, MalformedNpyFilesAreFileErrors) {
  const auto header = [](const std::string& descr, const std::string& rest) {
    return "{'descr': '" + descr + "', 'fortran_order': " + rest + "}";
  };
  const std::pair<std::string, const char*> files[] = {
      {"", "too short"},
      {npy(header(">f4", "False, 'shape': (1,)"), 4), "little-endian"},
      {npy(header("|O", "False, 'shape': (1,)"), 8), "objects"},
      {npy(header("|u1", "False, 'shape': (1,)"), 1), "unknown dtype"},
      {npy(header("<f4", "True, 'shape': (1,)"), 4), "fortran_order"},
      {npy(header("<f4", "False, 'shape': (-1,)"), 4), "sizes >= 0"},
      {npy(header("<f4", "False, 'shape': (9999999999999999999,)"), 4), "overflows"},
      {npy(header("<f4", "False, 'shape': (2,)"), 4), "expected 8 bytes of data, got 4"},
      {npy(header("<f4", "False, 'shape': (1,)"), 5), "got 5"},
      {npy(header("<f4", "False, 'descr': '<f4'"), 5), "duplicate key"}};
  for (const auto& [bytes, message] : files) {
    const TempFolder folder;
    fs::create_directory(folder / "in");
    put(folder / "in/query.npy", bytes);
    expect_error({"run", folder / "in", "-o", folder / "out"}, kFile, message);
    expect_error({"run", folder / "in", "-o", folder / "out"}, kFile, folder / "in/query.npy");
    EXPECT_EQ(folder.entries(), 1);
  }
}

TEST(Files, InputThatIsNotThereIsAFileError) {
  const TempFolder folder;
  expect_error({"run", folder / "none.safetensors", "-o", folder / "out"}, kFile,
               "none.safetensors: cannot open: No such file");
  EXPECT_EQ(folder.entries(), 0);
}

TEST(Files, OutputThatCannotBeIsFoundBeforeInputIsRead) {
  const TempFolder folder;
  put(folder / "file", "");
  fs::create_directory(folder / "home");
  put(folder / "home/letter.txt", "dear");
  const std::pair<std::string, const char*> outputs[] = {
      {folder / "none/out.safetensors", "cannot write into the folder"},
      {folder / "file/out.safetensors", "Not a directory"},
      {"/proc/out.safetensors", "cannot write into the folder /proc"},
      {folder / "home", "'letter.txt'"},
      {folder / "file", "not a folder"},
      {"/dev/full", "not a folder"},
      {folder.path() + "/.", "expected a name"}};
  for (const auto& [output, message] : outputs) {
    expect_error({"run", folder / "missing.safetensors", "-o", output}, kFile, message);
  }
  EXPECT_EQ(get(folder / "home/letter.txt"), "dear");
  EXPECT_EQ(folder.entries(), 2);
}

TEST(Files, AFullDiskLeavesNoPartialOutput) {
  const TempFolder folder;
  TensorMap tensors = small_input();
  tensors["query"] = HostTensor(DType::kFloat32, {1, 500, 4, 3});
  write_tensors(folder / "in.safetensors", tensors);
  put(folder / "old.safetensors", "old");
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{8192, before.rlim_max};
  for (const char* name : {"out.safetensors", "out", "old.safetensors"}) {
    const TempFolder logs;
    ::setrlimit(RLIMIT_FSIZE, &small);
    const pid_t child = start_tool({"run", folder / "in.safetensors", "-o", folder / name}, logs);
    ::setrlimit(RLIMIT_FSIZE, &before);
    const Ran ran = wait_for_tool(child, logs);
    EXPECT_EQ(ran.code, kFile) << ran.err;
    EXPECT_NE(ran.err.find("cannot write: File too large"), std::string::npos) << ran.err;
    EXPECT_NE(ran.err.find(name), std::string::npos) << ran.err;
  }
  EXPECT_EQ(get(folder / "old.safetensors"), "old");
  EXPECT_EQ(folder.entries(), 2);
}

TEST(Files, AFailureLeavesTheOldOutputUntouched) {
  const TempFolder folder;
  write_tensors(folder / "in.safetensors", {{"query", HostTensor(DType::kFloat32, {1})}});
  put(folder / "out.safetensors", "old");
  EXPECT_EQ(run_tool({"run", folder / "in.safetensors", "-o", folder / "out.safetensors"}).code, 2);
  EXPECT_EQ(get(folder / "out.safetensors"), "old");
  EXPECT_EQ(folder.entries(), 2);
}

TEST(Files, SignalsEndTheToolAndLeaveNoPartialOutput) {
  const TempFolder folder;
  // Minutes of work for the reference backend: it is interrupted, whatever the machine.
  const std::vector<std::int64_t> large = {1, 20000, 1, 64};
  write_tensors(folder / "in.safetensors", {{"query", HostTensor(DType::kFloat32, large)},
                                            {"key", HostTensor(DType::kFloat32, large)},
                                            {"value", HostTensor(DType::kFloat32, large)}});
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const TempFolder logs;
    const pid_t child = start_tool({"run", folder / "in.safetensors", "-o", folder / "out",
                                    "--backend", "reference", "--threads", "1"},
                                   logs);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    ::kill(child, signal);
    EXPECT_EQ(wait_for_tool(child, logs).signal, signal);
  }
  EXPECT_EQ(folder.entries(), 1);
}

}  // namespace
}  // namespace ringattn::testing
