// SPDX-License-Identifier: Apache-2.0
#include "case_input.h"

#include <filesystem>
#include <system_error>

namespace ringattn::tool {

bool is_case(const std::string& word) {
  std::error_code ignored;  // a name too long for a file is not one
  return !std::filesystem::exists(word, ignored) && support::looks_like_case(word);
}

support::Case case_with_options(support::Case c, const Settings& s) {
  if (s.causal) c.causal = true;
  if (s.window) c.window = *s.window;
  if (s.chunk) c.chunk = s.chunk;
  if (s.soft_cap) c.soft_cap = s.soft_cap;
  if (s.scale) c.scale = s.scale;
  if (s.q_blocksize > 0) c.q_block = s.q_blocksize;
  if (s.kv_blocksize > 0) c.kv_block = s.kv_blocksize;
  if (s.fused_backward) c.fused = true;
  if (s.deterministic) c.deterministic = true;
  if (s.given.contains("--ring")) c.ring = s.ring;
  if (s.given.contains("--layout")) c.layout = s.layout;
  if (s.dtype) c.dtype = *s.dtype;
  if (s.backward) c.backward = true;
  if (s.given.contains("--seed") && s.random == 0) c.seed = s.seed;
  return c;
}

Settings settings_of(const support::Case& c, const Settings& settings) {
  Settings s = settings;
  s.causal = c.causal;
  s.window.reset();
  if (c.window && (c.window->first || c.window->second)) s.window = *c.window;
  s.chunk = c.chunk;
  s.soft_cap = c.soft_cap;
  s.scale = c.scale;
  s.q_blocksize = c.q_block;
  s.kv_blocksize = c.kv_block;
  s.fused_backward = c.fused;
  s.deterministic = c.deterministic;
  s.ring = c.ring;
  s.layout = c.layout;
  s.dtype = c.dtype;
  s.backward = c.backward;
  s.seed = c.seed;
  return s;
}

Problem problem_of(const support::Case& c, const Settings& settings) {
  Problem problem = support::make_problem(c);
  problem.device = settings.device();
  return problem;
}

Options options_of(const support::Case& c, const support::CaseData& data,
                   const Settings& settings) {
  Options options = support::make_options(c, data);
  options.backend = settings.backend_option();
  options.executor = library_options(settings).executor;
  return options;
}

std::string repeat_command(const support::Case& c, const Settings& s) {
  std::string command = "ringattn check " + support::to_string(c);
  if (s.over_processes()) {
    command = "mpirun -n " + std::to_string(c.ring) + " " + command + " --communicator mpi";
  }
  if (s.backend != "auto") command += " --backend " + s.backend;
  if (!s.isa.empty()) command += " --isa " + s.isa;
  if (s.given.contains("--threads")) command += " --threads " + std::to_string(s.threads);
  if (s.grad_f32) command += " --grad-dtype f32";
  return command;
}

}  // namespace ringattn::tool
