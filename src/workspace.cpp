// SPDX-License-Identifier: Apache-2.0
#include "workspace.h"

#include <algorithm>

#include "backend.h"
#include "summary.h"

namespace ringattn {
namespace {

void carve_schedule(const Plan& plan, Pass pass, Carver& carver, Workspace& w) {
  const std::int64_t batch = plan.problem().batch;
  const std::int64_t queries = plan.query_rows(plan.rank()).size();
  if (plan.options().segment_ids) {
    w.query_ids = carver.take_array<std::int32_t>(batch * queries);
    w.query_bounds = carver.take_array<SegmentBounds>(batch * query_tiles(plan, pass));
    w.key_bounds = carver.take_array<SegmentBounds>(batch * most_key_tiles(plan, pass));
  }
  if (plan.options().explicit_positions) {
    w.query_positions = carver.take_array<std::int64_t>(queries);
    w.query_spans = carver.take_array<Range>(query_tiles(plan, pass) + 1);
    w.key_spans = carver.take_array<Range>(most_key_tiles(plan, pass) + 1);
  }
}

}  // namespace

std::int64_t query_tiles(const Plan& plan, Pass pass) {
  return Tiling{plan.query_rows(plan.rank()), plan.tiles(pass).queries, nullptr}.count();
}

std::int64_t most_key_tiles(const Plan& plan, Pass pass) {
  std::int64_t tiles = 0;
  for (int r = 0; r < plan.world(); ++r) {
    tiles = std::max(tiles, Tiling{plan.key_rows(r), plan.tiles(pass).keys, nullptr}.count());
  }
  return tiles;
}

std::size_t record_bytes(const Plan& plan) {
  return std::max(summary_bytes(plan.problem()),
                  static_cast<std::size_t>(plan.problem().query_heads) * sizeof(double));
}

Workspace carve_step(const Plan& plan, Pass pass, Carver& carver) {
  Workspace w;
  carve_schedule(plan, pass, carver, w);
  w.backend = carver.take(plan.backend().workspace_bytes(plan, pass));
  return w;
}

Workspace carve_workspace(const Plan& plan, Pass pass, Carver& carver) {
  Workspace w;
  const bool ring = plan.world() > 1;
  std::size_t block = 0;
  std::size_t sums = 0;
  for (int r = 0; r < plan.world(); ++r) {
    block = std::max(block, plan.block_layout(r).bytes);
    sums = std::max(sums, plan.sums_bytes(r));
  }
  carve_schedule(plan, pass, carver, w);
  w.head_sinks = carver.take_array<double>(plan.problem().query_heads);
  w.head_dsinks =
      carver.take_array<double>(pass == Pass::kBackward ? plan.problem().query_heads : 0);
  const BlockLayout own = plan.block_layout(plan.rank());
  // Alone, K and V are read where they lie; only ids and positions are copied.
  w.own_block = carver.take(ring ? own.bytes : own.bytes - own.ids);
  if (plan.shares_blocks()) {
    w.shared_block = carver.take(plan.backend().shared_block_bytes(plan, pass));
  }
  if (ring) {
    w.table = carver.take(record_bytes(plan) * static_cast<std::size_t>(plan.world()));
  } else {
    w.table = carver.take(record_bytes(plan));
  }
  const bool buffers = ring && !plan.hands_over();
  for (auto& b : w.received_blocks) b = carver.take(buffers ? block : 0);
  if (pass == Pass::kBackward) {
    w.own_sums = carver.take(plan.sums_bytes(plan.rank()));
    for (auto& p : w.parts) p = carver.take(ring ? sums : 0);
    w.received_sums = carver.take(buffers ? sums : 0);
    for (auto& s : w.returned_sums) s = carver.take(buffers ? plan.sums_bytes(plan.rank()) : 0);
  }
  w.backend = carver.take(plan.backend().workspace_bytes(plan, pass));
  w.state = carver.take(plan.backend().state_bytes(plan, pass));
  return w;
}

}  // namespace ringattn
