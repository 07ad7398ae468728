// SPDX-License-Identifier: Apache-2.0
// `ringattn check`: a file, cases or random cases against float64. It judges nothing itself; the
// verdict is support/conformance's.
#include <fmt/format.h>

#include <vector>

#include "case_input.h"
#include "check_data.h"
#include "commands.h"
#include "progress.h"
#include "report.h"
#include "ring_pass.h"
#include "ringattn/version.h"
#include "run_rows.h"
#include "support/process_check.h"

namespace ringattn::tool {
namespace {

/// One input with its verdict, or the error that it ended in.
struct Checked {
  std::string source;  // a file or a case
  std::string repeat;  // the command that repeats it
  support::CheckReport report;
  std::string error;
  nlohmann::json json;  // as `run --json`
  std::string text;

  bool ok() const { return error.empty() && report.ok(); }
};

support::CheckSettings check_settings(const Settings& s) {
  support::CheckSettings settings;
  settings.backend = s.backend_option();
  settings.timeout = s.timeout;
  if (s.grad_f32) settings.grad_dtype = DType::kFloat32;
  settings.other_executor = make_thread_pool(s.threads == 3 ? 2 : 3);
  return settings;
}

nlohmann::json errors_json(const support::CheckReport& report) {
  nlohmann::json errors = nlohmann::json::object();
  for (const support::Comparison& c : report.tensors) {
    errors[c.tensor] = {{"ok", c.ok},
                        {"rms", c.error.rms},
                        {"max", c.error.max},
                        {"naive_rms", c.naive.rms},
                        {"naive_max", c.naive.max},
                        {"rms_limit", c.limit.rms},
                        {"max_limit", c.limit.max}};
  }
  return errors;
}

std::string errors_text(const support::CheckReport& report) {
  std::string text = fmt::format("{:<14}{:>12}{:>12}{:>12}{:>12}\n", "error of", "rms", "naive rms",
                                 "max", "naive max");
  for (const support::Comparison& c : report.tensors) {
    text += fmt::format("{:<14}{:>12.2e}{:>12.2e}{:>12.2e}{:>12.2e}{}\n", c.tensor, c.error.rms,
                        c.naive.rms, c.error.max, c.naive.max, c.ok ? "" : "  too large");
  }
  return text;
}

void describe(Checked& checked, const Settings& settings, const Inputs& inputs) {
  checked.json = report_json(settings, inputs, checked.report.result);
  checked.text = report_text(settings, inputs, checked.report.result);
}

Checked check_file(const std::string& path, const Settings& settings, Communicator* ring) {
  Checked checked;
  checked.source = path;
  checked.repeat = "the same command";
  support::CheckSettings how = check_settings(settings);
  how.guard = support::Guard::kNone;  // so that the time is that of `run`
  if (ring != nullptr) {
    const Inputs rows = read_own_rows(path, settings, *ring);
    checked.report = support::check_over_processes(
        *ring, rows.problem, rows.options, settings.backward, how,
        [&](const Options& options, const support::RingSettings& run) {
          return support::RankJob(*ring, rows.problem, options, ring_inputs(rows), run);
        },
        [&] {  // float64 needs all of them in one place
          const Inputs whole = read_inputs(path, settings);
          return support::make_expected(whole.problem, whole.options, ring_inputs(whole),
                                        settings.backward);
        });
    describe(checked, settings, rows);
    return checked;
  }
  const Inputs inputs = read_inputs(path, settings);
  checked.report = support::check_problem(inputs.problem, inputs.options, ring_inputs(inputs),
                                          settings.ring, settings.backward, how);
  describe(checked, settings, inputs);
  return checked;
}

/// A case's tensors under the names that a file gives them.
TensorMap named_tensors(support::CaseData data) {
  TensorMap tensors;
  const auto add = [&](const char* name, HostTensor& tensor) {
    if (!tensor.shape().empty()) tensors[name] = std::move(tensor);
  };
  add("query", data.query);
  add("key", data.key);
  add("value", data.value);
  add("q_segment_ids", data.q_segment_ids);
  add("kv_segment_ids", data.kv_segment_ids);
  add("q_positions", data.q_positions);
  add("kv_positions", data.kv_positions);
  add("softmax_aux", data.sinks);
  add("mask", data.mask);
  add("dout", data.dout);
  return tensors;
}

Checked check_one_case(const support::Case& c, const Settings& settings, Communicator* ring) {
  Checked checked;
  checked.source = support::to_string(c);
  checked.repeat = repeat_command(c, settings);
  support::CaseData data = support::make_data(c);
  const Problem problem = problem_of(c, settings);
  const Options options = options_of(c, data, settings);
  checked.report = check_data(c, problem, data, options, check_settings(settings), ring);
  TensorMap tensors = named_tensors(std::move(data));
  const TensorShapes shapes = shapes_of(tensors);
  describe(checked, settings_of(c, settings), {problem, options, std::move(tensors), shapes});
  return checked;
}

/// A random case may find an error that is thrown: that is a failure of the case, not of the tool.
/// But a ring of processes that has failed is no more.
Checked check_random_case(std::uint64_t seed, const Settings& settings, Communicator* ring) {
  const support::Case c = case_with_options(support::random_case(seed), settings);
  if (ring != nullptr) return check_one_case(c, settings, ring);
  try {
    return check_one_case(c, settings, nullptr);
  } catch (const std::exception& error) {
    Checked checked;
    checked.source = support::to_string(c);
    checked.repeat = repeat_command(c, settings);
    checked.error = std::string("error: ") + error.what() + "\n";
    return checked;
  }
}

void print_failure(const Checked& checked) {
  fmt::print(stderr, "FAILED {}\n{}{}repeat with: {}\n", checked.source, checked.error,
             checked.report.message(), checked.repeat);
}

nlohmann::json verdict_json(const Checked& checked) {
  nlohmann::json json = checked.json.is_null() ? nlohmann::json::object() : checked.json;
  json["source"] = checked.source;
  json["ok"] = checked.ok();
  json["errors"] = errors_json(checked.report);
  json["failures"] = checked.report.failures;
  if (!checked.error.empty()) json["failures"].push_back(checked.error);
  if (!checked.ok()) json["repeat"] = checked.repeat;
  return json;
}

/// What all checks of one command add up to.
struct Tally {
  std::int64_t checked = 0;
  std::int64_t failed = 0;
  nlohmann::json results = nlohmann::json::array();

  void add(const Checked& c, const Settings& settings, bool describe) {
    ++checked;
    failed += c.ok() ? 0 : 1;
    if (!settings.speaks) return;
    if (!c.ok()) print_failure(c);
    if (settings.json && (describe || !c.ok())) results.push_back(verdict_json(c));
    if (describe && !settings.json && !settings.quiet) {
      fmt::print("{}\n{}{}\n", c.source, c.text, errors_text(c.report));
    }
  }
};

void check_random(const Settings& settings, Communicator* ring, Tally& tally) {
  Progress progress(!settings.quiet);
  for (std::int64_t i = 0; i < settings.random; ++i) {
    progress.set("check", static_cast<int>(i), static_cast<int>(settings.random));
    const std::uint64_t seed = settings.seed + static_cast<std::uint64_t>(i);
    tally.add(check_random_case(seed, settings, ring), settings, false);
  }
}

void check_inputs(const Settings& settings, Communicator* ring, Tally& tally) {
  for (const std::string& word : settings.inputs) {
    const bool by_case = is_case(word);
    const Checked checked =
        by_case
            ? check_one_case(case_with_options(support::parse_case(word), settings), settings, ring)
            : check_file(word, settings, ring);
    tally.add(checked, settings, true);
  }
}

}  // namespace

int check_command(const Settings& settings, Communicator* ring) {
  Tally tally;
  if (settings.random > 0) {
    check_random(settings, ring, tally);
  } else {
    check_inputs(settings, ring, tally);
  }
  if (!settings.speaks) return tally.failed == 0 ? 0 : 1;
  if (settings.json && settings.random == 0 && tally.results.size() == 1) {
    fmt::print("{}\n", tally.results[0].dump());  // one input: its own object, as `run` prints
  } else if (settings.json) {
    const nlohmann::json all = {{"version", RINGATTN_VERSION},
                                {"checked", tally.checked},
                                {"failed", tally.failed},
                                {"results", tally.results}};
    fmt::print("{}\n", all.dump());
  } else if (!settings.quiet) {
    fmt::print("{} checked, {} failed\n", tally.checked, tally.failed);
  }
  return tally.failed == 0 ? 0 : 1;
}

}  // namespace ringattn::tool
