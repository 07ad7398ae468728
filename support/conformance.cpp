// SPDX-License-Identifier: Apache-2.0
#include "support/conformance.h"

#include <algorithm>
#include <cstring>

#include "support/data.h"
#include "support/visibility.h"

namespace ringattn::support {
namespace {

PassCounts total(const std::vector<PassCounts>& ranks) {
  PassCounts sum;
  for (const PassCounts& rank : ranks) {
    sum.pairs += rank.pairs;
    sum.tiles.visited += rank.tiles.visited;
    sum.tiles.full += rank.tiles.full;
  }
  return sum;
}

/// The schedule's counts against pairs counted one by one.
void check_counts(const char* pass, const std::vector<PassCounts>& ranks, std::int64_t pairs,
                  CheckReport& report) {
  const PassCounts sum = total(ranks);
  if (sum.pairs != pairs) {
    report.failures.push_back(std::string(pass) + ": counted " + std::to_string(sum.pairs) +
                              " visible pairs, there are " + std::to_string(pairs));
  }
  if (sum.tiles.full > sum.tiles.visited) {
    report.failures.push_back(std::string(pass) + ": more full tiles than visited ones");
  }
}

RingResult run_again(const Problem& problem, const Options& options, const RingInputs& inputs,
                     RingSettings settings, int ring, const std::shared_ptr<Executor>& executor) {
  Options again = options;
  if (executor != nullptr) again.executor = executor;
  settings.ring = ring;
  return run_on_ring(problem, again, inputs, settings);
}

void compare_tensors(const Problem& problem, const RingResult& truth, const NaiveResult& naive,
                     CheckReport& report) {
  for (const NamedResult& r : kResults) {
    if ((report.result.*r.member).shape().empty()) continue;
    report.tensors.push_back(compare(r.name, report.result.*r.member, truth.*r.member,
                                     naive.*r.naive,
                                     error_model(r.name, problem, naive.magnitudes)));
  }
}

void compare_with_one(const Problem& problem, const RingResult& one, const RingResult& truth,
                      const NaiveResult& naive, CheckReport& report) {
  for (const NamedResult& r : kResults) {
    if ((report.result.*r.member).shape().empty()) continue;
    const Comparison c =
        compare_ring(r.name, report.result.*r.member, one.*r.member, truth.*r.member,
                     error_model(r.name, problem, naive.magnitudes));
    if (!c.ok) report.failures.push_back(c.message);
  }
}

void compare_without_lse(const Problem& problem, const HostTensor& out, const Expected& expected,
                         CheckReport& report) {
  const Comparison c = compare("out", out, expected.truth.out, expected.naive.out,
                               error_model("out", problem, expected.naive.magnitudes));
  if (!c.ok) report.failures.push_back("without lse: " + c.message);
}

}  // namespace

RingResult float64_truth(const Problem& problem, const Options& options, const RingInputs& inputs,
                         bool backward) {
  Problem on_host = problem;
  on_host.device = Device::kCpu;
  Options exact = options;
  exact.backend = "reference";
  exact.layout = Layout::kContiguous;
  RingSettings settings;
  settings.backward = backward;
  settings.out_dtype = DType::kFloat64;
  settings.grad_dtype = DType::kFloat64;
  settings.lse_dtype = DType::kFloat64;
  return run_on_ring(on_host, exact, inputs, settings);
}

std::string different_bits(const RingResult& a, const RingResult& b, bool dquery_too) {
  for (const NamedResult& r : kResults) {
    if (!dquery_too && r.member == &RingResult::dquery) continue;
    const HostTensor& x = a.*r.member;
    const HostTensor& y = b.*r.member;
    const bool equal =
        x.shape() == y.shape() && x.size_bytes() == y.size_bytes() &&
        (x.size_bytes() == 0 || std::memcmp(x.data(), y.data(), x.size_bytes()) == 0);
    if (!equal) return r.name;
  }
  return {};
}

bool repeats_dquery(const Problem& problem, const Options& options) {
  return problem.device == Device::kCpu || options.deterministic;
}

bool CheckReport::ok() const {
  return failures.empty() &&
         std::all_of(tensors.begin(), tensors.end(), [](const Comparison& c) { return c.ok; });
}

std::string CheckReport::message() const {
  std::string lines;
  for (const Comparison& c : tensors) {
    if (!c.ok) lines += c.message + "\n";
  }
  for (const std::string& failure : failures) lines += failure + "\n";
  return lines;
}

double CheckReport::max_error() const {
  double largest = 0.0;
  for (const Comparison& c : tensors) largest = std::max(largest, c.error.max);
  return largest;
}

Options CheckSettings::chosen(const Options& options) const {
  Options chosen = options;
  chosen.backend = backend;
  if (executor != nullptr) chosen.executor = executor;
  return chosen;
}

RingSettings CheckSettings::run(bool backward) const {
  RingSettings run;
  run.backward = backward;
  run.timeout = timeout;
  run.out_dtype = out_dtype;
  run.grad_dtype = grad_dtype;
  run.guard = guard;
  return run;
}

Expected make_expected(const Problem& problem, const Options& options, const RingInputs& inputs,
                       bool backward) {
  return {float64_truth(problem, options, inputs, backward),
          naive_attention(problem, options, inputs, backward),
          Visibility(options, inputs).pairs(problem.batch, problem.query_heads)};
}

CheckReport judge(const Expected& expected, const Problem& problem, const Options& options,
                  const RingInputs& inputs, RingResult result, const RingResult* again) {
  CheckReport report;
  report.result = std::move(result);
  compare_tensors(problem, expected.truth, expected.naive, report);
  // Where only the GPU sees ids and positions, counts are those of mask and layout.
  const bool counted = problem.device == Device::kCpu ||
                       (!inputs.q_segment_ids.present() && !inputs.kv_segment_ids.present() &&
                        !inputs.q_positions.present());
  if (counted) {
    check_counts("forward", report.result.forward, expected.pairs, report);
    if (!report.result.backward.empty()) {
      check_counts("backward", report.result.backward, expected.pairs, report);
    }
  }
  if (again != nullptr) {
    const std::string tensor =
        different_bits(report.result, *again, repeats_dquery(problem, options));
    if (!tensor.empty()) report.failures.push_back(tensor + ": other bits in a second run");
  }
  return report;
}

CheckReport check_against(const Expected& expected, const Problem& problem, const Options& options,
                          const RingInputs& inputs, int ring, bool backward,
                          const CheckSettings& settings) {
  const Options chosen = settings.chosen(options);
  RingSettings run = settings.run(backward);
  run.ring = ring;
  RingResult result = run_on_ring(problem, chosen, inputs, run);
  RingResult again;
  if (settings.twice) {
    again = run_again(problem, chosen, inputs, run, ring, settings.other_executor);
  }
  CheckReport report = judge(expected, problem, options, inputs, std::move(result),
                             settings.twice ? &again : nullptr);
  if (settings.against_one && ring > 1) {
    const RingResult one = run_again(problem, chosen, inputs, run, 1, nullptr);
    compare_with_one(problem, one, expected.truth, expected.naive, report);
  }
  run.backward = run.lse = false;
  compare_without_lse(problem, run_on_ring(problem, chosen, inputs, run).out, expected, report);
  return report;
}

CheckReport check_problem(const Problem& problem, const Options& options, const RingInputs& inputs,
                          int ring, bool backward, const CheckSettings& settings) {
  return check_against(make_expected(problem, options, inputs, backward), problem, options, inputs,
                       ring, backward, settings);
}

CheckReport check_case(const Case& c, const CheckSettings& settings) {
  const CaseData data = make_data(c);
  return check_problem(make_problem(c), make_options(c, data), data.inputs(), c.ring, c.backward,
                       settings);
}

}  // namespace ringattn::support
