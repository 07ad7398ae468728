// SPDX-License-Identifier: Apache-2.0
// Any lines as the arguments of the tool: either an Error, or settings that the library's options
// and the JSON report can be made of.
#include "options.h"

#include <string>
#include <vector>

#include "ringattn/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ringattn;
  std::vector<std::string> arguments(1);
  for (std::size_t i = 0; i < size; ++i) {
    if (data[i] == '\n') {
      arguments.emplace_back();
    } else if (data[i] != 0) {  // no argument of a process holds a NUL
      arguments.back() += static_cast<char>(data[i]);
    }
  }
  try {
    tool::Settings settings = tool::parse(arguments);
    settings.threads = settings.threads > 0 ? 1 : 0;  // thousands of threads find nothing
    (void)tool::library_options(settings);
    (void)tool::to_json(settings);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInvalidArgument && error.code() != ErrorCode::kUnsupported) {
      __builtin_trap();
    }
  }
  return 0;
}
