// SPDX-License-Identifier: Apache-2.0
// What a rank tells the others about its shard before a pass, so that all agree on which hops are
// dead: ranges of segment ids per batch row, and of explicit positions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plan.h"
#include "schedule.h"

namespace ringattn {

/// One rank's summary: this, then 2 * B SegmentBounds (queries, then keys).
struct Summary {
  Range query_span;  // of explicit positions
  Range key_span;
};

std::size_t summary_bytes(const Problem& problem);

/// Writes the summary of a shard of `queries` and `keys` rows whose ids [B, rows] and positions
/// [rows] are at hand (null: none).
void summarise(std::int64_t batch, std::int64_t queries, std::int64_t keys,
               const std::int32_t* query_ids, const std::int32_t* key_ids,
               const std::int64_t* query_positions, const std::int64_t* key_positions,
               std::byte* out);

/// Clears the pairs of ranks whose summaries rule out a visible pair. `table`: one record of
/// `stride` bytes per rank.
void apply_summaries(const Plan& plan, const std::byte* table, std::size_t stride,
                     LiveMatrix& live);

}  // namespace ringattn
