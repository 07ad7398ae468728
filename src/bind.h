// SPDX-License-Identifier: Apache-2.0
// Completes the schedule of a pair of shards with what one call's data says: segment ids and
// explicit positions, copied to the workspace where kernels cannot read them as they lie, and the
// tables that tiles are classified by.
#pragma once

#include "block.h"
#include "plan.h"
#include "ringattn/tensor.h"
#include "schedule.h"
#include "workspace.h"

namespace ringattn {

/// This rank's queries. `ids` [B, Sq_local] and `positions` [Sq_local] are read as the plan's
/// options say that they are there.
void bind_queries(const Plan& plan, const ConstTensorView& ids, const ConstTensorView& positions,
                  const Workspace& workspace, Stream stream, PairSchedule& schedule);

/// The keys of `owner`.
void bind_keys(const Plan& plan, int owner, const KeyBlock& block, const Workspace& workspace,
               Stream stream, PairSchedule& schedule);

}  // namespace ringattn
