// SPDX-License-Identifier: Apache-2.0
#include "plan_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "report.h"

namespace ringattn::tool {
namespace {

/// Steps beyond this make lines that no terminal shows.
constexpr std::size_t kMaxColumns = 16;

/// ">r2 45 %": the block of rank 2 arrives, and its work is 45 % of the heaviest step's.
std::string step_cell(const StepCounts& s, double heaviest) {
  const std::string owner = fmt::format("{}r{}", s.step.receives ? ">" : "", s.step.owner);
  if (s.counts.pairs == 0) return fmt::format("{:>6}     -", owner);
  return fmt::format("{:>6} {:>3.0f} %", owner,
                     100 * static_cast<double>(s.counts.flops) / heaviest);
}

std::string header(const PlannedPass& pass) {
  std::string text = fmt::format("{:>5}", "rank");
  const auto& steps = pass.ring.ranks.front();
  for (std::size_t s = 0; s < std::min(steps.size(), kMaxColumns); ++s) {
    const int offset = steps[s].step.offset;
    text += fmt::format("{:>12}", offset == 0 ? "own" : fmt::format("hop {:+d}", offset));
  }
  if (steps.size() > kMaxColumns) text += fmt::format(" +{} more", steps.size() - kMaxColumns);
  return text + fmt::format("{:>9}{:>12}{:>14}\n", "total", "sent", "workspace");
}

nlohmann::json tiles_json(const TileCounts& tiles) {
  return {{"visited", tiles.visited}, {"full", tiles.full}, {"skipped", tiles.skipped}};
}

nlohmann::json step_json(const StepCounts& s) {
  return {{"offset", s.step.offset},
          {"owner", s.step.owner},
          {"live", s.counts.pairs > 0},
          {"receives", s.step.receives},
          {"sends", s.step.sends},
          {"bytes", s.counts.bytes},
          {"tiles", {{"visited", s.counts.tiles.visited}, {"full", s.counts.tiles.full}}},
          {"pairs", s.counts.pairs},
          {"flops", s.counts.flops}};
}

nlohmann::json rank_json(const PlannedPass& pass, std::size_t r) {
  const PassCounts& sum = pass.totals[r];
  nlohmann::json steps = nlohmann::json::array();
  for (const StepCounts& s : pass.ring.ranks[r]) steps.push_back(step_json(s));
  return {{"hops", sum.hops},
          {"bytes", sum.bytes},
          {"tiles", tiles_json(sum.tiles)},
          {"flops", sum.flops},
          {"workspace_bytes", pass.workspace_bytes[r]},
          {"steps", steps}};
}

/// How many hops of the ring nobody computes at, and nobody sends for: those are not even there.
std::size_t dead_hops(const PlannedPass& pass) {
  return pass.ring.ranks.size() - pass.ring.ranks.front().size();
}

}  // namespace

PlannedPass plan_pass(const std::vector<Plan>& plans, Pass pass, const GlobalData& data) {
  PlannedPass result;
  result.ring.pass = pass;
  result.tiles = plans.front().tiles(pass);
  const LiveMatrix live = plans.front().live_matrix(data);
  for (const Plan& plan : plans) {
    PassCounts sum;
    result.ring.ranks.push_back(plan.steps(pass, plan.rank(), live, data));
    for (const StepCounts& s : result.ring.ranks.back()) {
      sum.hops += s.counts.hops;
      sum.bytes += s.counts.bytes;
      sum.tiles.visited += s.counts.tiles.visited;
      sum.tiles.full += s.counts.tiles.full;
      sum.pairs += s.counts.pairs;
      sum.flops += s.counts.flops;
    }
    sum.tiles.skipped = plan.all_tiles(pass, plan.rank()) - sum.tiles.visited;
    result.totals.push_back(sum);
    result.workspace_bytes.push_back(plan.workspace_bytes(pass));
  }
  return result;
}

std::string plan_text(const PlannedPass& pass) {
  const PassCounts sum = total(pass.totals);
  const Balance even = balance(pass.ring);
  std::string text = fmt::format(
      "{}: {} {}, {} sent by all ranks, {}\n"
      "tiles of {} x {}: {} visited, {} of them full, {} skipped\n"
      "balance {:.2f}, or {:.2f} if every hop waits for the slowest rank; {} of {} hops dropped as "
      "dead\n",
      pass.ring.pass == Pass::kForward ? "forward" : "backward", sum.hops,
      sum.hops == 1 ? "transfer" : "transfers", with_unit(static_cast<double>(sum.bytes), "B"),
      with_unit(static_cast<double>(sum.flops), "FLOP"), pass.tiles.queries, pass.tiles.keys,
      sum.tiles.visited, sum.tiles.full, sum.tiles.skipped, even.total, even.paced, dead_hops(pass),
      pass.ring.ranks.size() - 1);
  text += header(pass);
  double heaviest = 1, busiest = 1;
  for (std::size_t r = 0; r < pass.totals.size(); ++r) {
    busiest = std::max(busiest, static_cast<double>(pass.totals[r].flops));
    for (const StepCounts& s : pass.ring.ranks[r]) {
      heaviest = std::max(heaviest, static_cast<double>(s.counts.flops));
    }
  }
  for (std::size_t r = 0; r < pass.totals.size(); ++r) {
    text += fmt::format("{:>5}", r);
    const auto& steps = pass.ring.ranks[r];
    for (std::size_t s = 0; s < std::min(steps.size(), kMaxColumns); ++s) {
      text += step_cell(steps[s], heaviest);
    }
    if (steps.size() > kMaxColumns) {
      text += std::string(fmt::formatted_size(" +{} more", steps.size() - kMaxColumns), ' ');
    }
    text += fmt::format("{:>7.0f} %{:>12}{:>14}\n",
                        100 * static_cast<double>(pass.totals[r].flops) / busiest,
                        with_unit(static_cast<double>(pass.totals[r].bytes), "B"),
                        with_unit(static_cast<double>(pass.workspace_bytes[r]), "B"));
  }
  return text;
}

nlohmann::json plan_json(const PlannedPass& pass) {
  const PassCounts sum = total(pass.totals);
  const Balance even = balance(pass.ring);
  nlohmann::json ranks = nlohmann::json::array();
  for (std::size_t r = 0; r < pass.totals.size(); ++r) ranks.push_back(rank_json(pass, r));
  return {{"hops", sum.hops},
          {"dead_hops", dead_hops(pass)},
          {"bytes", sum.bytes},
          {"tile", {pass.tiles.queries, pass.tiles.keys}},
          {"tiles", tiles_json(sum.tiles)},
          {"flops", sum.flops},
          {"balance", {{"total", even.total}, {"paced", even.paced}}},
          {"ranks", ranks}};
}

}  // namespace ringattn::tool
