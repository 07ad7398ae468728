// SPDX-License-Identifier: Apache-2.0
// The command line `ringattn`: picks the command and turns exceptions into one line on stderr and
// an exit code. It decides nothing else.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "commands.h"
#include "io/file_error.h"
#include "options.h"
#include "ringattn/error.h"
#include "signals.h"

namespace ringattn::tool {
namespace {

constexpr int kUsage = 2;
constexpr int kUnsupported = 3;
constexpr int kCommunication = 4;
constexpr int kFile = 5;
constexpr int kInternal = 1;  // like a failed check: the answer cannot be trusted

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return kUsage;
    case ErrorCode::kUnsupported: return kUnsupported;
    case ErrorCode::kCommunication: return kCommunication;
    case ErrorCode::kInternal: return kInternal;
  }
  return kInternal;
}

int fail(int code, std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  fmt::print(stderr, "ringattn: error: {}\n", message);
  return code;
}

int dispatch(const Settings& settings) {
  switch (settings.command) {
    case Command::kRun: return run_command(settings);
    case Command::kCheck: return check_command(settings);
    case Command::kBench: return bench_command(settings);
    case Command::kPlan: return plan_command(settings);
    case Command::kInfo: return info_command(settings);
  }
  return kInternal;
}

int run(const std::vector<std::string>& arguments) {
  const Settings settings = parse(arguments);
  int code = 0;
  if (settings.text.empty()) {
    code = dispatch(settings);
  } else {
    fmt::print("{}", settings.text);
  }
  if (std::fflush(stdout) != 0) throw FileError("standard output", std::strerror(errno));
  if (!settings.no_command) return code;
  return fail(kUsage, "expected a command: run, check, bench, plan or info");
}

int translate(const std::vector<std::string>& arguments) {
  try {
    return run(arguments);
  } catch (const Error& error) {
    return fail(exit_code(error.code()), error.what());
  } catch (const FileError& error) {
    return fail(kFile, error.what());
  } catch (const std::bad_alloc&) {
    return fail(kUnsupported, "not enough memory on this machine");
  } catch (const std::system_error& error) {  // stdout, or no more threads
    return fail(error.code().value() == EAGAIN ? kUnsupported : kFile, error.what());
  } catch (const std::exception& error) {
    return fail(kInternal, error.what());
  }
}

}  // namespace
}  // namespace ringattn::tool

int main(int argc, char** argv) {
  ringattn::tool::remove_temporaries_on_signals();
  return ringattn::tool::translate({argv + std::min(argc, 1), argv + argc});
}
