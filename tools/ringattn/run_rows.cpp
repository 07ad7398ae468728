// SPDX-License-Identifier: Apache-2.0
#include "run_rows.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <optional>
#include <span>

#include "io/tensor_file.h"
#include "plan.h"
#include "process_ring.h"
#include "report.h"
#include "ring_pass.h"
#include "support/rank_job.h"

namespace ringattn::tool {
namespace {

using support::RingRank;

/// A tensor of OUT that is cut over the ranks.
struct Sharded {
  const char* name;
  support::LocalTensor RingRank::*member;
  std::size_t axis;  // of the rows
  bool of_keys;      // as many as key has, not query
};
constexpr Sharded kSharded[] = {{"out", &RingRank::out, 1, false},
                                {"lse", &RingRank::lse, 2, false},
                                {"dquery", &RingRank::dquery, 1, false},
                                {"dkey", &RingRank::dkey, 1, true},
                                {"dvalue", &RingRank::dvalue, 1, true}};

std::span<const std::byte> bytes_of_rows(const ConstTensorView& view) {
  std::int64_t bytes = size_of(view.dtype);
  for (int d = 0; d < view.rank; ++d) bytes *= view.dim(d);
  return {static_cast<const std::byte*>(view.data), static_cast<std::size_t>(bytes)};
}

/// What this command writes, and its global shapes.
class Output {
 public:
  Output(const Inputs& inputs, const Settings& settings, const RingRank& rank)
      : settings_(settings), problem_(inputs.problem), rank_(rank) {
    for (const Sharded& s : kSharded) {
      const ConstTensorView rows = (rank.*s.member).view();
      if (!rows.present()) continue;
      std::vector<std::int64_t> shape = support::shape_of(rows);
      shape[s.axis] = length(s);
      shapes_[s.name] = {rows.dtype, shape};
    }
    const ConstTensorView sinks = rank.dsinks.view();
    if (sinks.present()) shapes_["dsoftmax_aux"] = {sinks.dtype, support::shape_of(sinks)};
  }

  /// Rank 0 creates the files, everybody fills them, rank 0 gives them their name.
  void write(Communicator& ring) {
    const bool first = ring.rank() == 0;
    const auto writers = on_one_machine(ring) ? AtomicOutput::Writers::kThisMachine
                                              : AtomicOutput::Writers::kMachines;
    together(ring, [&] {
      if (first) output_.emplace(settings_.output, shapes_, writers);
    });
    const std::string temporary = from_first(ring, first ? output_->temporary() : "");
    together(ring, [&] {
      if (!first) output_.emplace(settings_.output, shapes_, temporary);
      write_rows(ring);
      output_->close();
    });
    together(ring, [&] {
      if (first) output_->commit();
    });
  }

 private:
  std::int64_t length(const Sharded& s) const {
    return s.of_keys ? problem_.key_seq : problem_.query_seq;
  }

  void write_rows(const Communicator& ring) {
    for (const Sharded& s : kSharded) {
      const ConstTensorView rows = (rank_.*s.member).view();
      if (!rows.present()) continue;
      output_->write_rows(s.name, s.axis,
                          positions(settings_.layout, length(s), ring.size(), ring.rank()),
                          bytes_of_rows(rows));
    }
    if (shapes_.contains("dsoftmax_aux") && ring.rank() == 0) {
      output_->write("dsoftmax_aux", bytes_of_rows(rank_.dsinks.view()));
    }
  }

  const Settings& settings_;
  const Problem& problem_;
  const RingRank& rank_;
  TensorShapes shapes_;
  std::optional<TensorOutput> output_;
};

/// What a process says of itself after the passes.
struct Process {
  std::array<char, 256> host{};
  std::int64_t peak_bytes = 0;
};

Process this_process() {
  Process process;
  ::gethostname(process.host.data(), process.host.size() - 1);
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) process.peak_bytes = std::stoll(line.substr(6)) * 1024;
  }
  return process;
}

void print(const Settings& settings, const Inputs& inputs, const support::RingResult& result,
           const std::vector<Process>& processes) {
  if (settings.json) {
    nlohmann::json json = report_json(settings, inputs, result);
    json["processes"] = nlohmann::json::array();
    for (const Process& p : processes) {
      json["processes"].push_back({{"host", p.host.data()}, {"peak_bytes", p.peak_bytes}});
    }
    fmt::print("{}\n", json.dump());
  } else if (!settings.quiet) {
    fmt::print("{}wrote {}\n", report_text(settings, inputs, result), settings.output);
  }
}

}  // namespace

Inputs read_own_rows(const std::string& source, const Settings& settings, Communicator& ring) {
  Inputs inputs;
  together(ring, [&] {
    inputs = read_rows(source, settings, ring.rank(), ring.size());
    naming_source(source, [&] {
      const Plan checked(inputs.problem, inputs.options, ring.rank(), ring.size(), false);
    });
  });
  return inputs;
}

int run_rows(const Settings& settings, Communicator& ring) {
  const std::string& source = settings.inputs.front();
  together(ring, [&] {
    if (ring.rank() == 0) check_writable(settings.output);
  });
  const Inputs inputs = read_own_rows(source, settings, ring);
  support::RankJob job(ring, inputs.problem, inputs.options, ring_inputs(inputs),
                       ring_settings(settings));
  naming_source(source, [&] {
    job.forward();
    if (settings.backward) job.backward();
  });
  const support::RingResult summary = job.summary();
  Output(inputs, settings, job.rank()).write(ring);
  const std::vector<Process> processes = support::gather_all(ring, this_process());
  if (ring.rank() == 0) print(settings, inputs, summary, processes);
  return 0;
}

}  // namespace ringattn::tool
