// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <fmt/format.h>

#include <algorithm>

#include "io/tensor_entry.h"
#include "ringattn/version.h"

namespace ringattn::tool {
namespace {

nlohmann::json counts_json(const PassCounts& counts) {
  return {{"hops", counts.hops},
          {"bytes", counts.bytes},
          {"tiles",
           {{"visited", counts.tiles.visited},
            {"full", counts.tiles.full},
            {"skipped", counts.tiles.skipped}}},
          {"flops", counts.flops}};
}

nlohmann::json pass_json(double milliseconds, const std::vector<PassCounts>& ranks) {
  if (ranks.empty()) return nullptr;
  nlohmann::json pass = counts_json(total(ranks));
  pass["ms"] = milliseconds;
  pass["ranks"] = nlohmann::json::array();
  for (const PassCounts& rank : ranks) pass["ranks"].push_back(counts_json(rank));
  return pass;
}

std::string pass_row(const char* pass, double milliseconds, const std::vector<PassCounts>& ranks) {
  const PassCounts sum = total(ranks);
  return fmt::format("{:<9}{:>10.1f}{:>6}{:>14}{:>10}{:>10}{:>10}{:>10.2f}\n", pass, milliseconds,
                     sum.hops, sum.bytes, sum.tiles.visited, sum.tiles.full, sum.tiles.skipped,
                     milliseconds > 0 ? static_cast<double>(sum.flops) / milliseconds / 1e6 : 0.0);
}

}  // namespace

std::vector<std::int64_t> out_shape(const Inputs& inputs) {
  const Problem& p = inputs.problem;
  return {p.batch, p.query_seq, p.query_heads, p.value_dim};
}

std::string isa_of(const Settings& settings, const std::string& backend) {
  if (!settings.isa.empty()) return settings.isa;
  for (const BackendInfo& info : backends()) {
    if (info.name == backend && !info.instruction_sets.empty()) {
      return info.instruction_sets.front();
    }
  }
  return "portable";
}

PassCounts total(const std::vector<PassCounts>& ranks) {
  PassCounts sum;
  for (const PassCounts& rank : ranks) {
    sum.hops = std::max(sum.hops, rank.hops);
    sum.bytes += rank.bytes;
    sum.tiles.visited += rank.tiles.visited;
    sum.tiles.full += rank.tiles.full;
    sum.tiles.skipped += rank.tiles.skipped;
    sum.pairs += rank.pairs;
    sum.flops += rank.flops;
  }
  return sum;
}

nlohmann::json report_json(const Settings& settings, const Inputs& inputs,
                           const support::RingResult& result) {
  nlohmann::json shapes;
  for (const auto& [name, tensor] : inputs.shapes) shapes[name] = tensor.shape;
  shapes["out"] = out_shape(inputs);
  return {{"version", RINGATTN_VERSION},
          {"options", to_json(settings)},
          {"shapes", shapes},
          {"backend",
           {{"name", result.backend},
            {"isa", isa_of(settings, result.backend)},
            {"reason", result.backend_reason}}},
          {"ring",
           {{"size", settings.ring},
            {"layout", name(settings.layout)},
            {"communicator", settings.communicator}}},
          {"forward", pass_json(result.forward_ms, result.forward)},
          {"backward", pass_json(result.backward_ms, result.backward)}};
}

std::string report_text(const Settings& settings, const Inputs& inputs,
                        const support::RingResult& result) {
  std::string text = fmt::format(
      "query {}  key {}  value {}  {}\n"
      "ring of {}, {}, backend {} ({}): {}\n",
      to_string(inputs.shapes.at("query").shape), to_string(inputs.shapes.at("key").shape),
      to_string(inputs.shapes.at("value").shape), name(inputs.problem.dtype), settings.ring,
      name(settings.layout), result.backend, isa_of(settings, result.backend),
      result.backend_reason);
  text += fmt::format("{:<9}{:>10}{:>6}{:>14}{:>10}{:>10}{:>10}{:>10}\n", "pass", "ms", "hops",
                      "bytes sent", "visited", "full", "skipped", "GFLOP/s");
  text += pass_row("forward", result.forward_ms, result.forward);
  if (!result.backward.empty()) text += pass_row("backward", result.backward_ms, result.backward);
  return text;
}

}  // namespace ringattn::tool
