// SPDX-License-Identifier: Apache-2.0
// Tiles, visible pairs and FLOPs of a pair of shards, counted from the schedule.
#pragma once

#include "plan.h"
#include "ringattn/attention.h"
#include "schedule.h"

namespace ringattn {

/// FLOPs of visible pairs: forward QK^T and PV; backward those recomputed plus four products more
/// (Dao et al. 2022, arXiv 2205.14135, algorithm 4).
std::int64_t flops(const Problem& problem, Pass pass, std::int64_t pairs);

/// Exact counts over batch and query heads; hops and bytes stay 0. Cost grows with the tiles that
/// need masking, not with all of them, unless segments, bitmaps or explicit positions decide.
PassCounts count_tiles(const PairSchedule& schedule, const Problem& problem, Pass pass);

PassCounts& operator+=(PassCounts& sum, const PassCounts& part);

}  // namespace ringattn
