// SPDX-License-Identifier: Apache-2.0
// What the parsed command line means: combinations that are refused, the library's options, JSON.
#include <CLI/CLI.hpp>
#include <algorithm>

#include "gpus.h"
#include "options.h"
#include "process_ring.h"
#include "ringattn/error.h"

namespace ringattn::tool {
namespace {

[[noreturn]] void invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}

[[noreturn]] void unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupported, message);
}

/// Only ranks of one process share a GPU.
void check_cuda(const Settings& s) {
  if (s.communicator == "mpi") {
    unsupported(
        "--backend cuda: expected with --communicator local, processes over MPI send from the "
        "host's memory only");
  }
  const bool built = built_with_cuda();
  for (const BackendInfo& backend : backends()) {
    if (backend.name != "cuda" || backend.available) continue;
    unsupported("--backend cuda: " + backend.reason +
                (built ? "; expected a machine with an NVIDIA GPU and its driver, or --backend cpu"
                       : "; expected a build with nvcc (CMake option RINGATTN_CUDA=ON), or "
                         "--backend cpu"));
  }
}

void check_available(const Settings& s) {
  if (s.backend == "cuda") check_cuda(s);
  const bool counts_only = s.communicator == "mpi" && s.command == Command::kPlan;
  if (s.communicator == "local" || counts_only) return;
  if (s.communicator != "mpi") {
    unsupported("--communicator " + s.communicator + ": expected local or mpi, ringattn has no " +
                s.communicator + " yet");
  }
  const MpiBuild mpi = mpi_build();
  if (mpi.library.empty()) unsupported("--communicator mpi: " + mpi.reason);
}

nlohmann::json side(const std::optional<std::int64_t>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json();
}

template <class T>
nlohmann::json or_null(const std::optional<T>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json();
}

}  // namespace

void check_combinations(const Settings& s) {
  check_available(s);
  if (s.given.contains("--grad-dtype") && !s.backward) {
    invalid("--grad-dtype: expected with --backward, got it alone");
  }
  if (!s.isa.empty() && s.backend != "auto" && s.backend != "cpu") {
    invalid("--isa: expected with --backend cpu or auto, got --backend " + s.backend);
  }
  if (s.command == Command::kRun && s.fused_backward && !s.backward) {
    invalid("--fused-backward: expected with --backward, got it alone");
  }
  if (s.command == Command::kCheck) {
    if (s.random == 0 && s.inputs.empty()) invalid("check: expected IN, CASE or --random N");
    if (s.random > 0 && !s.inputs.empty()) {
      invalid("--random: expected without IN or CASE, got '" + s.inputs.front() + "'");
    }
  }
}

Settings parse(std::vector<std::string> arguments) {
  Settings settings;
  CLI::App app("", "ringattn");
  add_commands(app, settings);
  std::reverse(arguments.begin(), arguments.end());  // what CLI11 wants
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::CallForHelp&) {
    settings.text = app.help();
    return settings;
  } catch (const CLI::CallForVersion& version) {
    settings.text = std::string(version.what()) + "\n";
    return settings;
  } catch (const CLI::ParseError& error) {
    invalid(error.what());
  }
  settings.no_command = app.get_subcommands().empty();
  if (settings.no_command) {
    settings.text = app.help();
  } else {
    check_combinations(settings);
  }
  return settings;
}

Options library_options(const Settings& s) {
  Options options;
  if (s.causal) options.mask = options.mask & Mask::causal();
  if (s.window) options.mask = options.mask & Mask::window(s.window->first, s.window->second);
  if (s.chunk) options.mask = options.mask & Mask::chunk(*s.chunk);
  options.layout = s.layout;
  options.softmax_scale = s.scale;
  options.logits_soft_cap = s.soft_cap;
  options.forward_tiles = {s.q_blocksize, s.kv_blocksize};
  options.backward_tiles = options.forward_tiles;
  options.fused_backward = s.fused_backward;
  options.deterministic = s.deterministic;
  options.backend = s.backend_option();
  if (s.threads > 0) options.executor = make_thread_pool(s.threads);
  return options;
}

nlohmann::json to_json(const Settings& s) {
  nlohmann::json window;
  if (s.window) window = {side(s.window->first), side(s.window->second)};
  return {{"causal", s.causal},
          {"sliding_window", window},
          {"chunk_size", or_null(s.chunk)},
          {"logits_soft_cap", or_null(s.soft_cap)},
          {"softmax_scale", or_null(s.scale)},
          {"q_blocksize", s.q_blocksize > 0 ? nlohmann::json(s.q_blocksize) : nlohmann::json()},
          {"kv_blocksize", s.kv_blocksize > 0 ? nlohmann::json(s.kv_blocksize) : nlohmann::json()},
          {"fused_backward", s.fused_backward},
          {"deterministic", s.deterministic},
          {"ring", s.ring},
          {"layout", name(s.layout)},
          {"communicator", s.communicator},
          {"backend", s.backend},
          {"isa", s.isa.empty() ? nlohmann::json() : nlohmann::json(s.isa)},
          {"threads", s.threads > 0 ? s.threads : default_executor()->threads()},
          {"dtype", s.dtype ? nlohmann::json(name(*s.dtype)) : nlohmann::json()},
          {"backward", s.backward},
          {"lse", s.lse},
          {"grad_dtype", s.grad_f32 ? "f32" : "input"},
          {"timeout", static_cast<double>(s.timeout.count()) / 1000.0}};
}

}  // namespace ringattn::tool
