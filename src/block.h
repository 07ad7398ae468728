// SPDX-License-Identifier: Apache-2.0
// One shard's keys, values, segment ids and positions: as the caller's views, or packed in one
// message for the ring.
#pragma once

#include <cstddef>
#include <span>

#include "plan.h"
#include "ringattn/attention.h"
#include "schedule.h"
#include "workspace.h"

namespace ringattn {

/// A shard's keys as a backend sees them.
struct KeyBlock {
  ConstTensorView key;
  ConstTensorView value;
  const std::int32_t* ids = nullptr;        // [B, rows]
  const std::int64_t* positions = nullptr;  // [rows]
};

/// Fills workspace.own_block: keys and values only if they will travel, ids also if they are not
/// contiguous.
void pack_own_block(const Plan& plan, const ConstTensorView& key, const ConstTensorView& value,
                    const ConstTensorView& ids, const ConstTensorView& positions,
                    const Workspace& workspace, Executor& executor, Stream stream);

/// The block of `owner` in a message.
KeyBlock unpack(const Plan& plan, int owner, std::span<const std::byte> message);

/// This rank's own block where it lies.
KeyBlock own_block(const Plan& plan, const ConstTensorView& key, const ConstTensorView& value,
                   const ConstTensorView& ids, const Workspace& workspace);

/// Segment ids [B, rows] that need no copy to be contiguous.
inline bool contiguous(const ConstTensorView& ids) {
  return (ids.dim(1) <= 1 || ids.stride(1) == 1) &&
         (ids.dim(0) <= 1 || ids.stride(0) == ids.dim(1));
}

}  // namespace ringattn
