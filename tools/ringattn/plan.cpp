// SPDX-License-Identifier: Apache-2.0
// `ringattn plan`: what each rank would compute and send, without computing or sending it.
#include <fmt/format.h>

#include <filesystem>
#include <optional>
#include <span>

#include "backend.h"
#include "case_input.h"
#include "commands.h"
#include "inputs.h"
#include "io/atomic_output.h"
#include "io/file_error.h"
#include "pictures.h"
#include "plan_report.h"
#include "ringattn/version.h"
#include "support/data.h"

namespace ringattn::tool {
namespace {

/// The problem, from a file or from a case, with the data that its schedule depends on.
struct Planned {
  std::string title;
  Problem problem;
  Options options;
  int ring = 1;
  bool backward = false;
  std::optional<support::Case> from_case;
  HostTensor q_ids, kv_ids, q_positions, kv_positions;
};

template <class T>
const T* values(const HostTensor& tensor) {
  return tensor.shape().empty() ? nullptr : tensor.as<T>();
}

/// One of the two given serves both.
GlobalData global_data(const Planned& p) {
  GlobalData data{values<std::int32_t>(p.q_ids), values<std::int32_t>(p.kv_ids),
                  values<std::int64_t>(p.q_positions), values<std::int64_t>(p.kv_positions)};
  const bool one_length = p.problem.query_seq == p.problem.key_seq;
  if ((data.q_segment_ids == nullptr) != (data.kv_segment_ids == nullptr) && !one_length) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: expected ids for queries and keys, since their lengths differ ({} "
                            "and {}), got one",
                            data.q_segment_ids == nullptr ? "q_segment_ids" : "kv_segment_ids",
                            p.problem.query_seq, p.problem.key_seq));
  }
  if (data.q_segment_ids == nullptr) data.q_segment_ids = data.kv_segment_ids;
  if (data.kv_segment_ids == nullptr) data.kv_segment_ids = data.q_segment_ids;
  if (data.q_positions == nullptr) data.q_positions = data.kv_positions;
  if (data.kv_positions == nullptr) data.kv_positions = data.q_positions;
  return data;
}

Planned from_case(const std::string& text, const Settings& settings) {
  Planned p;
  const support::Case c = case_with_options(support::parse_case(text), settings);
  support::CaseData data = support::make_structure(c);
  p.title = to_string(c);
  p.problem = problem_of(c, settings);
  p.options = options_of(c, data, settings);
  p.ring = c.ring;
  p.backward = c.backward;
  p.from_case = c;
  p.q_ids = std::move(data.q_segment_ids);
  p.kv_ids = std::move(data.kv_segment_ids);
  p.q_positions = std::move(data.q_positions);
  p.kv_positions = std::move(data.kv_positions);
  return p;
}

Planned from_file(const std::string& path, const Settings& settings) {
  Planned p;
  Inputs inputs = read_inputs(path, settings);
  const auto take = [&](const char* name) {
    const auto it = inputs.tensors.find(name);
    return it == inputs.tensors.end() ? HostTensor() : std::move(it->second);
  };
  p.problem = inputs.problem;
  p.options = inputs.options;
  p.ring = settings.ring;
  p.backward = settings.backward;
  p.q_ids = take("q_segment_ids");
  p.kv_ids = take("kv_segment_ids");
  p.q_positions = take("q_positions");
  p.kv_positions = take("kv_positions");
  const bool all = p.options.mask.interval() == IntervalMask{};
  const std::string mask = !p.options.segment_ids ? p.options.mask.to_string()
                           : all                  ? "segments"
                                                  : p.options.mask.to_string() + " & segments";
  p.title = fmt::format("{}: {}, {}, {}", std::filesystem::path(path).filename().string(), mask,
                        name(p.options.layout),
                        p.ring == 1 ? "one rank" : fmt::format("ring of {}", p.ring));
  return p;
}

std::string subtitle(const Planned& p, const Plan& plan) {
  return fmt::format(
      "batch {}, {} queries, {} keys, {} heads, {} kv heads, head_dim {}, {}; {}, ring of {}; "
      "backend {}",
      p.problem.batch, p.problem.query_seq, p.problem.key_seq, p.problem.query_heads,
      p.problem.kv_heads, p.problem.head_dim, name(p.problem.dtype), name(p.options.layout), p.ring,
      plan.backend().name());
}

std::string who_sees_whom(const Planned& p) {
  std::string text = "Who sees whom: ";
  if (!p.options.segment_ids) {
    text += p.options.mask.to_string();
  } else if (p.options.mask.interval() == IntervalMask{}) {
    text += "each segment itself";
  } else {
    text += p.options.mask.to_string() + ", within a segment";
  }
  const bool rows_differ = p.options.segment_ids && p.problem.batch > 1;
  const auto shape = p.options.mask.shape();
  if (rows_differ) text += fmt::format("; batch row 0 of {}", p.problem.batch);
  if (shape && shape->heads > 1) text += fmt::format("; head 0 of {}", p.problem.query_heads);
  return text;
}

void write_picture(AtomicOutput& output, const std::string& svg) {
  const auto writer = output.create();
  writer->write(std::as_bytes(std::span(svg)));
  writer->close();
  output.commit();
}

nlohmann::json as_json(const Settings& settings, const Planned& p, const Plan& plan,
                       const std::vector<PlannedPass>& passes) {
  nlohmann::json json = {
      {"version", RINGATTN_VERSION},
      {"options", to_json(settings)},
      {"problem",
       {{"batch", p.problem.batch},
        {"query_seq", p.problem.query_seq},
        {"key_seq", p.problem.key_seq},
        {"query_heads", p.problem.query_heads},
        {"kv_heads", p.problem.kv_heads},
        {"head_dim", p.problem.head_dim},
        {"value_dim", plan.problem().value_dim},
        {"dtype", name(p.problem.dtype)},
        {"mask", p.options.mask.to_string()},
        {"segment_ids", p.options.segment_ids},
        {"explicit_positions", p.options.explicit_positions}}},
      {"backend", {{"name", plan.backend().name()}, {"reason", plan.backend_reason()}}},
      {"ring",
       {{"size", p.ring},
        {"layout", name(p.options.layout)},
        {"communicator", settings.communicator}}},
      {"forward", plan_json(passes[0])},
      {"backward", passes.size() > 1 ? plan_json(passes[1]) : nlohmann::json()}};
  if (p.from_case) json["case"] = to_string(*p.from_case);
  return json;
}

}  // namespace

int plan_command(const Settings& settings) {
  std::optional<AtomicOutput> output;  // first: an unwritable name is found before the work
  if (!settings.output.empty()) {
    if (!settings.output.ends_with(".svg")) {
      throw Error(ErrorCode::kInvalidArgument,
                  "-o: expected a name ending in .svg, got " + settings.output);
    }
    output.emplace(settings.output, AtomicOutput::Kind::kFile);
  }
  const std::string& input = settings.inputs.front();
  const Planned p = is_case(input) ? from_case(input, settings) : from_file(input, settings);
  const GlobalData data = global_data(p);
  // On a GPU the host reads no ids and positions: what is sent does not depend on them.
  const GlobalData counted = settings.device() == Device::kCpu ? data : GlobalData{};
  std::vector<Plan> plans;
  // Threads read each other's blocks; processes need buffers for them.
  const bool hands_over = settings.communicator == "local";
  for (int r = 0; r < p.ring; ++r) plans.emplace_back(p.problem, p.options, r, p.ring, hands_over);
  std::vector<PlannedPass> passes = {plan_pass(plans, Pass::kForward, counted)};
  if (p.backward) passes.push_back(plan_pass(plans, Pass::kBackward, counted));

  const Plan& first = plans.front();
  if (output) {
    std::vector<RingSteps> rings;
    for (const PlannedPass& pass : passes) rings.push_back(pass.ring);
    const TileMap map = make_tile_map(first, Pass::kForward, data, 0, 0);
    write_picture(*output, draw_plan(p.title, subtitle(p, first), map, who_sees_whom(p), rings));
  }
  if (settings.json) {
    fmt::print("{}\n", as_json(settings, p, first, passes).dump());
  } else if (!settings.quiet) {
    fmt::print("{}\n{}: {}\n", p.title, subtitle(p, first), first.backend_reason());
    for (const PlannedPass& pass : passes) fmt::print("\n{}", plan_text(pass));
    if (output) fmt::print("\nwrote {}\n", settings.output);
  }
  return 0;
}

}  // namespace ringattn::tool
