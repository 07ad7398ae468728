// SPDX-License-Identifier: Apache-2.0
// What the command line says, checked as far as it can be without data. It computes nothing and
// opens no file.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ringattn/attention.h"

namespace CLI {
class App;
}

namespace ringattn::tool {

enum class Command { kRun, kCheck, kBench, kPlan, kInfo };

/// A window's sides; none: unbounded.
using Window = std::pair<std::optional<std::int64_t>, std::optional<std::int64_t>>;

/// One command with all of its options. Members of other commands keep their defaults.
struct Settings {
  Command command = Command::kInfo;
  std::vector<std::string> inputs;  // IN or CASE, in order
  std::string output;               // -o

  bool causal = false;
  std::optional<Window> window;  // never with both sides none
  std::optional<std::int64_t> chunk;
  std::optional<float> soft_cap;
  std::optional<float> scale;
  std::int64_t q_blocksize = 0;  // 0: the backend's choice
  std::int64_t kv_blocksize = 0;
  bool fused_backward = false;
  bool deterministic = false;

  int ring = 1;
  Layout layout = Layout::kContiguous;
  std::string communicator = "local";
  std::string backend = "auto";
  std::string isa;  // forced instruction set of the backend cpu; empty: the machine's best

  /// Where tensors lie while they are worked on.
  Device device() const { return backend == "cuda" ? Device::kCuda : Device::kCpu; }

  /// As ringattn::Options::backend has it.
  std::string backend_option() const { return isa.empty() ? backend : "cpu:" + isa; }

  int threads = 0;  // 0: all cores
  std::chrono::milliseconds timeout = kDefaultTimeout;

  std::optional<DType> dtype;  // convert query, key, value and dout on reading
  bool backward = false;
  bool lse = false;
  bool grad_f32 = false;  // --grad-dtype f32
  bool json = false;
  bool quiet = false;

  std::int64_t random = 0;  // check: so many random cases
  std::uint64_t seed = 0;   // check and bench: of random data
  int repeats = 0;          // bench: 0: as many as a steady median needs

  std::string text;         // help or version: to be printed instead of running a command
  bool no_command = false;  // then `text` is the help, and the exit code 2

  std::set<std::string> given;  // names of options on the command line, such as "--causal"

  bool speaks = true;  // false on all ranks but the first of a ring of processes

  /// Is the ring one of processes that a launcher started, not of threads? plan only counts.
  bool over_processes() const { return communicator == "mpi" && command != Command::kPlan; }

  /// Does any option say who sees whom? They exclude the tensor `mask`.
  bool masks() const { return causal || window.has_value() || chunk.has_value(); }
};

/// Adds the subcommands and their options to `app`, which fill `settings` as it parses.
void add_commands(CLI::App& app, Settings& settings);

/// Refuses what parsing alone cannot see: combinations that mean nothing, and what this build
/// does not have (Error with kInvalidArgument or kUnsupported).
void check_combinations(const Settings& settings);

/// add_commands(), parsing and check_combinations() of a whole command line without its program
/// name. Throws Error, for usage errors with kInvalidArgument.
Settings parse(std::vector<std::string> arguments);

/// The library's options: mask, layout, hints, backend and a pool of settings.threads threads.
Options library_options(const Settings& settings);

/// "options" of --json: every option as it was understood, defaults included.
nlohmann::json to_json(const Settings& settings);

}  // namespace ringattn::tool
