// SPDX-License-Identifier: Apache-2.0
// Which way the ring turns, how far, and what every rank sends on the way.
#include <algorithm>

#include "plan.h"

namespace ringattn {

int owner_at(int rank, int offset, int world) {
  return (((rank - offset) % world) + world) % world;
}

namespace {

/// How far in each direction blocks must travel so that every needed offset is reached.
struct Reach {
  int forward = 0;
  int backward = 0;
};

/// Offsets 1..world-1 lie on a circle with 0: leave out the widest gap between needed ones.
Reach shortest(const std::vector<char>& needed) {
  const int world = static_cast<int>(needed.size());
  Reach best{world, world};
  int last = 0;  // the needed offset before the gap; 0 is always at hand
  for (int t = 1; t <= world; ++t) {
    if (t < world && needed[static_cast<std::size_t>(t)] == 0) continue;
    const Reach reach{last, world - t};
    // Of equals the one that goes forward most: there causal blocks stop soonest.
    if (reach.forward + reach.backward <= best.forward + best.backward) best = reach;
    last = t;
  }
  return best;
}

/// The farthest hop, up to `reach`, at which the block of `owner` is still needed; direction +-1.
int last_stop(const LiveMatrix& live, int owner, int reach, int direction) {
  for (int t = reach; t > 0; --t) {
    if (live.at(owner_at(owner, -direction * t, live.world()), owner)) return t;
  }
  return 0;
}

}  // namespace

Route make_route(const LiveMatrix& live, int rank) {
  const int world = live.world();
  std::vector<char> needed(static_cast<std::size_t>(world), 0);
  for (int r = 0; r < world; ++r) {
    for (int t = 1; t < world; ++t) {
      if (live.at(r, owner_at(r, t, world))) needed[static_cast<std::size_t>(t)] = 1;
    }
  }
  const Reach reach = shortest(needed);

  Route route;
  route.rank = rank;
  route.forward_reach = last_stop(live, rank, reach.forward, 1);
  route.backward_reach = last_stop(live, rank, reach.backward, -1);
  const auto add = [&](int offset) {
    Step step;
    step.offset = offset;
    step.owner = owner_at(rank, offset, world);
    step.live = live.at(rank, step.owner);
    if (offset != 0) {
      const int direction = offset > 0 ? 1 : -1;
      const int distance = std::abs(offset);
      const int limit = offset > 0 ? reach.forward : reach.backward;
      step.carried = owner_at(rank, offset - direction, world);  // what this rank passes on
      step.receives = last_stop(live, step.owner, limit, direction) >= distance;
      step.sends = last_stop(live, step.carried, limit, direction) >= distance;
    }
    route.steps.push_back(step);
  };
  add(0);
  for (int t = 1; t <= reach.forward; ++t) add(t);
  for (int t = 1; t <= reach.backward; ++t) add(-t);

  const auto is_live = [](const Step& s) { return s.live; };
  // A rank that sees nothing still writes its results: on its own block, where all is skipped.
  if (std::none_of(route.steps.begin(), route.steps.end(), is_live)) route.steps[0].live = true;
  std::find_if(route.steps.begin(), route.steps.end(), is_live)->first = true;
  std::find_if(route.steps.rbegin(), route.steps.rend(), is_live)->last = true;
  return route;
}

}  // namespace ringattn
