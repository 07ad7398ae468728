// SPDX-License-Identifier: Apache-2.0
#include "bind.h"

#include "backend.h"
#include "memory.h"

namespace ringattn {
namespace {

Positions listed(std::int64_t rows, const std::int64_t* positions) {
  return Positions{{{0, rows}, {}}, 1, positions};
}

}  // namespace

void bind_queries(const Plan& plan, const ConstTensorView& ids, const ConstTensorView& positions,
                  const Workspace& workspace, Stream stream, PairSchedule& schedule) {
  const Memory& memory = plan.backend().memory();
  if (plan.options().explicit_positions) {
    memory.copy_positions(positions, workspace.query_positions, stream);
    schedule.queries.positions =
        listed(schedule.queries.positions.size(), workspace.query_positions);
    memory.tile_spans(schedule.queries, workspace.query_spans, stream);
    schedule.queries.spans = workspace.query_spans;
  }
  if (plan.options().segment_ids) {
    const auto* rows = static_cast<const std::int32_t*>(ids.data);
    if (!contiguous(ids)) {
      memory.copy_ids(ids, workspace.query_ids, stream);
      rows = workspace.query_ids;
    }
    memory.segment_bounds(rows, plan.problem().batch, schedule.queries, workspace.query_bounds,
                          stream);
    schedule.query_segments = {rows, workspace.query_bounds};
  }
}

void bind_keys(const Plan& plan, int owner, const KeyBlock& block, const Workspace& workspace,
               Stream stream, PairSchedule& schedule) {
  const Memory& memory = plan.backend().memory();
  schedule.keys.positions = plan.key_rows(owner);
  schedule.keys.spans = nullptr;
  if (block.positions != nullptr) {
    schedule.keys.positions = listed(schedule.keys.positions.size(), block.positions);
    memory.tile_spans(schedule.keys, workspace.key_spans, stream);
    schedule.keys.spans = workspace.key_spans;
  }
  if (block.ids != nullptr) {
    memory.segment_bounds(block.ids, plan.problem().batch, schedule.keys, workspace.key_bounds,
                          stream);
    schedule.key_segments = {block.ids, workspace.key_bounds};
  }
}

}  // namespace ringattn
