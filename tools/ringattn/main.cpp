// SPDX-License-Identifier: Apache-2.0
// The command line `ringattn`: picks the command and turns exceptions into one line on stderr and
// an exit code. It decides nothing else.
#include <fmt/format.h>

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "commands.h"
#include "io/file_error.h"
#include "options.h"
#include "process_ring.h"
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

int dispatch(const Settings& settings, Communicator* ring) {
  switch (settings.command) {
    case Command::kRun: return run_command(settings, ring);
    case Command::kCheck: return check_command(settings, ring);
    case Command::kBench: return bench_command(settings, ring);
    case Command::kPlan: return plan_command(settings);
    case Command::kInfo: return info_command(settings);
  }
  return kInternal;
}

/// What a failure means to the user: a message and an exit code.
struct Verdict {
  int code;
  std::string message;
};

Verdict judge(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    return {exit_code(error.code()), error.what()};
  } catch (const FileError& error) {
    return {kFile, error.what()};
  } catch (const std::bad_alloc&) {
    return {kUnsupported, "not enough memory on this machine"};
  } catch (const std::system_error& error) {  // stdout, or no more threads
    return {error.code().value() == EAGAIN ? kUnsupported : kFile, error.what()};
  } catch (const std::exception& error) {
    return {kInternal, error.what()};
  }
}

/// The one line on stderr; the exit code.
int say(const std::exception_ptr& failure) {
  const Verdict verdict = judge(failure);
  return fail(verdict.code, verdict.message);
}

void flush_output() {
  if (std::fflush(stdout) != 0) throw FileError("standard output", std::strerror(errno));
}

/// A launcher kills the rest of a job when one process fails. Gives the others the time to say what
/// they know, and the answers that they still wait for.
void let_others_speak(Communicator& ring) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(300);
  while (std::chrono::steady_clock::now() < end) {
    ring.progress();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

/// Ends this process at once: MPI's own end may wait for peers that are lost.
[[noreturn]] void leave(int code) {
  std::fflush(nullptr);
  ::_exit(code);
}

/// This process's part of a command over all processes that the launcher has started. `refused`:
/// what is wrong with its command line, if anything is.
int run_over_processes(Settings settings, const std::exception_ptr& refused) {
  const std::unique_ptr<ProcessRing> processes = start_process_ring(settings.timeout);
  Communicator& ring = processes->ring();
  int code = kInternal;
  try {
    together(ring, [&] {
      if (refused) std::rethrow_exception(refused);
    });
    use_process_ring(settings, ring);
    code = dispatch(settings, &ring);
    together(ring, flush_output);
    processes->end();
    return code;
  } catch (const Agreed& agreed) {
    code = agreed.said() ? judge(agreed.cause()).code : say(agreed.cause());
  } catch (const std::exception& error) {
    code = say(std::current_exception());
    ring.abort(error.what());
    let_others_speak(ring);
    leave(code);
  }
  try {
    processes->end();
  } catch (const std::exception&) {  // lost on the way out; what matters has been said
    leave(code);
  }
  return code;
}

/// Will other processes have read the same command line? Then they refuse it together.
bool names_processes(const std::vector<std::string>& arguments) {
  const auto option = std::find(arguments.begin(), arguments.end(), "--communicator");
  const bool apart =
      option != arguments.end() && option + 1 != arguments.end() && *(option + 1) == "mpi";
  const bool one_word =
      std::find(arguments.begin(), arguments.end(), "--communicator=mpi") != arguments.end();
  return (apart || one_word) && arguments.front() != "plan" && !mpi_build().library.empty();
}

int run(const std::vector<std::string>& arguments) {
  Settings settings;
  std::exception_ptr refused;
  try {
    settings = parse(arguments);
  } catch (const Error&) {
    if (!names_processes(arguments)) throw;
    refused = std::current_exception();
  }
  if (!settings.text.empty()) {
    fmt::print("{}", settings.text);
    flush_output();
    return settings.no_command ? fail(kUsage, "expected a command: run, check, bench, plan or info")
                               : 0;
  }
  if (refused || settings.over_processes()) return run_over_processes(settings, refused);
  const int code = dispatch(settings, nullptr);
  flush_output();
  return code;
}

int translate(const std::vector<std::string>& arguments) {
  try {
    return run(arguments);
  } catch (const std::exception&) {
    return say(std::current_exception());
  }
}

}  // namespace
}  // namespace ringattn::tool

int main(int argc, char** argv) {
  ringattn::tool::remove_temporaries_on_signals();
  return ringattn::tool::translate({argv + std::min(argc, 1), argv + argc});
}
