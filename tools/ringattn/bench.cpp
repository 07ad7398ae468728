// SPDX-License-Identifier: Apache-2.0
// `ringattn bench`: checks cases, then times them, on a CPU beside its multiply-add peak, on a GPU
// with its clock. It compares with nothing else; bench/ does that.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <numeric>
#include <utility>

#include "bench_check.h"
#include "case_input.h"
#include "commands.h"
#include "gpus.h"
#include "progress.h"
#include "report.h"
#include "ring_pass.h"
#include "ringattn/version.h"
#include "support/fma_peak.h"
#include "support/rank_job.h"

namespace ringattn::tool {
namespace {

/// One timed run, and the peak beside it.
struct Sample {
  double ms;
  double peak;  // GFLOP/s; NaN: not measured, null in JSON
};
using Samples = std::vector<Sample>;

// Without --repeats: until this long has passed, within these numbers.
constexpr double kSteadyMs = 2000.0;
constexpr int kFewest = 5;
constexpr int kMost = 200;

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

/// A quantile of f(sample).
template <class F>
double quantile(const Samples& samples, double share, F f) {
  std::vector<double> values;
  for (const Sample& s : samples) values.push_back(f(s));
  return quantile(std::move(values), share);
}

bool enough(const Samples& samples, int repeats) {
  const auto n = static_cast<int>(samples.size());
  if (repeats > 0) return n >= repeats;
  double sum = 0.0;
  for (const Sample& s : samples) sum += s.ms;
  return n >= kMost || (n >= kFewest && sum >= kSteadyMs);
}

/// What the multipliers are asked beside each sample. Nothing on a GPU: beside kernels for its
/// product units a peak says nothing that the data sheet does not.
struct PeakOf {
  Device device;
  std::string isa;
  int threads;
  DType dtype;
  Communicator* processes;  // null: there is only this one

  /// Of all processes at once.
  double sample() const {
    if (device != Device::kCpu) return std::numeric_limits<double>::quiet_NaN();
    const double own = support::peak_sample(isa, threads, dtype);
    if (processes == nullptr) return own;
    const std::vector<double> all = support::gather_all(*processes, own);
    return std::accumulate(all.begin(), all.end(), 0.0);
  }
};

/// Times one pass; the first run warms up and is not counted. Clocks change from one moment to the
/// next, so each run is compared with the peak right before and after it.
template <class Pass>
Samples time_pass(const Settings& settings, Progress& progress, const PeakOf& peak,
                  const std::string& what, const Pass& pass) {
  Samples samples;
  pass();
  peak.sample();
  double before = peak.sample();
  while (!enough(samples, settings.repeats)) {
    progress.set(what, static_cast<int>(samples.size()),
                 settings.repeats > 0 ? settings.repeats : kFewest);
    const double ms = pass();
    const double after = peak.sample();
    samples.push_back({ms, std::max(before, after)});
    before = after;
  }
  return samples;
}

struct Bench {
  const Settings& settings;
  Communicator* processes;  // null: a ring of threads
  Progress progress;
  nlohmann::json results = nlohmann::json::array();

  Bench(const Settings& s, Communicator* ring) : settings(s), processes(ring), progress(!s.quiet) {}

  void add(const support::Case& c, const char* pass, const Samples& samples,
           const support::RingResult& result, const std::vector<PassCounts>& ranks,
           double max_error, const PeakOf& peak, const nlohmann::json& clock) {
    const PassCounts sum = total(ranks);
    const auto flops = static_cast<double>(sum.flops);
    const auto ms = [](const Sample& s) { return s.ms; };
    const auto share = [&](const Sample& s) { return flops / s.ms / 1e6 / s.peak; };
    const double median = quantile(samples, 0.5, ms);
    results.push_back(
        {{"case", support::to_string(c)},
         {"pass", pass},
         {"backend", result.backend},
         {"isa", peak.isa},
         {"threads", peak.threads},
         {"ring", c.ring},
         {"ms_median", median},
         {"ms_p10", quantile(samples, 0.1, ms)},
         {"ms_p90", quantile(samples, 0.9, ms)},
         {"repeats", samples.size()},
         {"flops", sum.flops},
         {"gflops", median > 0.0 ? flops / median / 1e6 : 0.0},
         {"peak_gflops", quantile(samples, 0.5, [](const Sample& s) { return s.peak; })},
         {"peak_share", quantile(samples, 0.5, share)},
         {"peak_share_p90", quantile(samples, 0.9, share)},
         {"hops", sum.hops},
         {"bytes_sent", sum.bytes},
         {"max_error", max_error}});
    if (peak.device == Device::kCuda) results.back()["sm_clock_mhz"] = clock;
  }

  /// Right after a pass, before the clock falls.
  nlohmann::json clock_now() const {
    return settings.device() == Device::kCuda ? sm_clock_mhz() : nlohmann::json();
  }

  template <class Job>
  void time(const support::Case& c, Job& job, double max_error, int threads) {
    const PeakOf peak{settings.device(), isa_of(settings, job.summary().backend), threads, c.dtype,
                      processes};
    const Samples forward =
        time_pass(settings, progress, peak, "forward ", [&] { return job.forward(); });
    const nlohmann::json clock = clock_now();
    nlohmann::json backward_clock;
    Samples backward;
    if (c.backward) {
      backward = time_pass(settings, progress, peak, "backward", [&] { return job.backward(); });
      backward_clock = clock_now();
    }
    const support::RingResult result = job.summary();
    add(c, "forward", forward, result, result.forward, max_error, peak, clock);
    if (c.backward) {
      add(c, "backward", backward, result, result.backward, max_error, peak, backward_clock);
    }
  }

  void run(const support::Case& c) {
    progress.set("check", 0, 1);
    const double max_error = checked_error(c, settings, processes);
    const Problem problem = problem_of(c, settings);
    support::CaseData data = support::make_data(c);
    const Options options = options_of(c, data, settings);
    const int threads = (options.executor ? options.executor : default_executor())->threads();
    support::RingSettings ring = ring_settings(settings);
    ring.ring = c.ring;
    ring.backward = c.backward;
    ring.lse = c.backward;  // an inference does without
    if (processes == nullptr) {
      support::RingJob job(problem, options, data.inputs(), ring);
      return time(c, job, max_error, threads);
    }
    auto job = support::RankJob::of_global(*processes, problem, options, data.inputs(), ring);
    data = {};
    time(c, job, max_error, threads);
  }
};

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

void print_text(const nlohmann::json& results) {
  fmt::print("{:<9}{:>10}{:>10}{:>10}{:>9}{:>10}{:>7}{:>6}{:>13}{:>11}  case\n", "pass", "ms",
             "p10", "p90", "repeats", "GFLOP/s", "peak", "hops", "bytes sent", "max error");
  for (const nlohmann::json& r : results) {
    const auto share = r["peak_share"].get<double>();
    fmt::print("{:<9}{:>10.3f}{:>10.3f}{:>10.3f}{:>9}{:>10.1f}{:>7}{:>6}{:>13}{:>11.1e}  {}\n",
               r["pass"].get<std::string>(), r["ms_median"].get<double>(),
               r["ms_p10"].get<double>(), r["ms_p90"].get<double>(),
               r["repeats"].get<std::size_t>(), r["gflops"].get<double>(),
               std::isnan(share) ? "-" : fmt::format("{:.0f}%", 100.0 * share),
               r["hops"].get<std::int64_t>(), r["bytes_sent"].get<std::int64_t>(),
               r["max_error"].get<double>(), r["case"].get<std::string>());
  }
}

}  // namespace

int bench_command(const Settings& settings, Communicator* ring) {
  Bench bench(settings, ring);
  std::vector<support::Case> cases;
  for (const std::string& text : settings.inputs) {  // all of them before the first one runs
    cases.push_back(case_with_options(support::parse_case(text), settings));
  }
  for (const support::Case& c : cases) bench.run(c);
  if (!settings.speaks) return 0;
  if (settings.json) {
    nlohmann::json machine = {{"cpu", cpu_model()}, {"cores", default_executor()->threads()}};
    if (settings.device() == Device::kCuda) machine["gpu"] = gpus_json().at(0);
    fmt::print("{}\n",
               nlohmann::json{
                   {"machine", machine}, {"version", RINGATTN_VERSION}, {"results", bench.results}}
                   .dump());
  } else {
    print_text(bench.results);
  }
  return 0;
}

}  // namespace ringattn::tool
