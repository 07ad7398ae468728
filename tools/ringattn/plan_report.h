// SPDX-License-Identifier: Apache-2.0
// What `plan` says: every rank's steps, as text and as JSON. It plans nothing itself and prints
// nothing.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pictures.h"
#include "plan.h"

namespace ringattn::tool {

/// One pass on all ranks.
struct PlannedPass {
  RingSteps ring;
  std::vector<PassCounts> totals;            // per rank, with the skipped tiles
  std::vector<std::size_t> workspace_bytes;  // per rank
  TileShape tiles;
};

/// `plans`: of every rank.
PlannedPass plan_pass(const std::vector<Plan>& plans, Pass pass, const GlobalData& data);

/// Some lines: the sums, then a row per rank with its share of work at each hop.
std::string plan_text(const PlannedPass& pass);

nlohmann::json plan_json(const PlannedPass& pass);

}  // namespace ringattn::tool
