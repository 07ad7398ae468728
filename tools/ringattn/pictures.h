// SPDX-License-Identifier: Apache-2.0
// The two pictures of a plan: who sees whom, in tiles; and what each rank computes and sends, hop
// by hop. They draw numbers that they are given and compute none that the plan does not say.
#pragma once

#include <string>
#include <vector>

#include "plan.h"
#include "svg.h"
#include "tile_map.h"

namespace ringattn::tool {

/// One pass of a ring: steps of every rank, all of the same number.
struct RingSteps {
  Pass pass = Pass::kForward;
  std::vector<std::vector<StepCounts>> ranks;
};

/// How evenly a pass loads the ranks; 1 is perfect, 0 says that there is no work.
struct Balance {
  double total = 0;  // mean / maximum of the ranks' FLOPs
  double paced = 0;  // sum over hops of the mean / of the maximum: ranks that wait every hop
};
Balance balance(const RingSteps& ring);

/// The step of all ranks with that index: a hop on which nobody computes is dead.
bool dead_hop(const RingSteps& ring, std::size_t step);

/// "1.5 MB", "24.0 GFLOP": three digits and a unit.
std::string with_unit(double value, const char* unit);

/// Draws with the upper left corner at (x, y); the size of what was drawn.
struct Extent {
  double width, height;
};
Extent draw_mask(Svg& svg, double x, double y, const TileMap& map, const std::string& caption);
Extent draw_ring(Svg& svg, double x, double y, const RingSteps& ring);

/// One file: title, subtitle, the mask, then the passes below each other.
std::string draw_plan(const std::string& title, const std::string& subtitle, const TileMap& map,
                      const std::string& mask_caption, const std::vector<RingSteps>& passes);

}  // namespace ringattn::tool
