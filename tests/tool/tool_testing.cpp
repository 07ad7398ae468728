// SPDX-License-Identifier: Apache-2.0
#include "tool_testing.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "dtype.h"

extern char** environ;

namespace ringattn::testing {
namespace {

template <class T>
HostTensor filled(DType dtype, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  HostTensor tensor(dtype, std::move(shape));
  EXPECT_EQ(tensor.elements(), static_cast<std::int64_t>(values.size()));
  std::memcpy(tensor.data(), values.data(), tensor.size_bytes());
  return tensor;
}

}  // namespace

pid_t start_tool(const Arguments& arguments, const TempFolder& folder) {
  std::string program = RINGATTN_TOOL;
  std::vector<std::string> copies = arguments;
  std::vector<char*> argv = {program.data()};
  for (std::string& argument : copies) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  const std::string out = folder / "stdout";
  const std::string err = folder / "stderr";
  ::posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  ::posix_spawn_file_actions_addopen(&actions, 2, err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t defaults;
  ::sigemptyset(&defaults);
  ::sigaddset(&defaults, SIGXFSZ);
  ::posix_spawnattr_setsigdefault(&attributes, &defaults);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  pid_t child = -1;
  const int error =
      ::posix_spawn(&child, program.c_str(), &actions, &attributes, argv.data(), environ);
  EXPECT_EQ(error, 0) << program << ": " << std::strerror(error);
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  return child;
}

Ran wait_for_tool(pid_t child, const TempFolder& folder) {
  Ran ran;
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  if (WIFEXITED(status)) ran.code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) ran.signal = WTERMSIG(status);
  ran.out = get(folder / "stdout");
  ran.err = get(folder / "stderr");
  return ran;
}

Ran run_tool(const Arguments& arguments) {
  const TempFolder folder;
  return wait_for_tool(start_tool(arguments, folder), folder);
}

void expect_error(const Arguments& arguments, int code, const std::string& part) {
  std::string command = "ringattn";
  for (const std::string& argument : arguments) command += " " + argument;
  SCOPED_TRACE(command);
  const Ran ran = run_tool(arguments);
  EXPECT_EQ(ran.code, code);
  EXPECT_EQ(ran.out, "");
  EXPECT_TRUE(ran.err.starts_with("ringattn: error: ")) << ran.err;
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  EXPECT_NE(ran.err.find(part), std::string::npos) << ran.err << "expected: " << part;
}

TensorMap small_input(DType dtype) {
  const auto made = [&](std::vector<std::int64_t> shape, double shift) {
    HostTensor tensor(dtype, std::move(shape));
    for (std::int64_t i = 0; i < tensor.elements(); ++i) {
      store(dtype, tensor.data(), i, std::sin(0.7 * static_cast<double>(i) + shift));
    }
    return tensor;
  };
  return {{"query", made({1, 8, 4, 3}, 0.0)},
          {"key", made({1, 6, 2, 3}, 1.0)},
          {"value", made({1, 6, 2, 5}, 2.0)},
          {"dout", made({1, 8, 4, 5}, 3.0)}};
}

HostTensor floats(std::vector<std::int64_t> shape, const std::vector<float>& values) {
  return filled(DType::kFloat32, std::move(shape), values);
}
HostTensor ints(std::vector<std::int64_t> shape, const std::vector<std::int32_t>& values) {
  return filled(DType::kInt32, std::move(shape), values);
}
HostTensor longs(std::vector<std::int64_t> shape, const std::vector<std::int64_t>& values) {
  return filled(DType::kInt64, std::move(shape), values);
}

double difference(const HostTensor& a, const HostTensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  double largest = 0.0;
  for (std::int64_t i = 0; i < std::min(a.elements(), b.elements()); ++i) {
    const double x = load(a.dtype(), a.data(), i);
    const double y = load(b.dtype(), b.data(), i);
    if (std::isfinite(x) && std::isfinite(y)) {
      largest = std::max(largest, std::abs(x - y));
    } else {
      EXPECT_TRUE(x == y || (std::isnan(x) && std::isnan(y))) << i << ": " << x << ", " << y;
    }
  }
  return largest;
}

}  // namespace ringattn::testing
