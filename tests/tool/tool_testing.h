// SPDX-License-Identifier: Apache-2.0
// Runs the real binary and looks at what a user sees: exit code, stdout, stderr, files.
#pragma once

#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/host_tensor.h"
#include "io/io_testing.h"

namespace ringattn::testing {

struct Ran {
  int code = -1;    // exit code; -1: ended by a signal
  int signal = 0;   // that one
  std::string out;  // stdout
  std::string err;  // stderr

  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

using Arguments = std::vector<std::string>;

/// Starts the tool; stdout and stderr go to files in `folder`. SIGXFSZ has its default action.
pid_t start_tool(const Arguments& arguments, const TempFolder& folder);

Ran wait_for_tool(pid_t child, const TempFolder& folder);

Ran run_tool(const Arguments& arguments);

/// One line "ringattn: error: ..." that holds `part`, this exit code, nothing on stdout.
void expect_error(const Arguments& arguments, int code, const std::string& part);

/// query, key, value and dout [1, 8, 4, 3] and so on, with G = 2 and Dv = 5; small numbers.
TensorMap small_input(DType dtype = DType::kFloat32);

/// A tensor of numbers given as they are.
HostTensor floats(std::vector<std::int64_t> shape, const std::vector<float>& values);
HostTensor ints(std::vector<std::int64_t> shape, const std::vector<std::int32_t>& values);
HostTensor longs(std::vector<std::int64_t> shape, const std::vector<std::int64_t>& values);

/// Largest |a - b|; NaN and inf must be in the same places.
double difference(const HostTensor& a, const HostTensor& b);

}  // namespace ringattn::testing
