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

/// Fills workspace.own_block: keys and values too if they will travel.
void pack_own_block(const Plan& plan, const ConstTensorView& key, const ConstTensorView& value,
                    const ConstTensorView& ids, const ConstTensorView& positions,
                    const Workspace& workspace, Executor& executor, Stream stream);

/// The block of `owner` in a message.
KeyBlock unpack(const Plan& plan, int owner, std::span<const std::byte> message);

/// This rank's own block where it lies.
KeyBlock own_block(const Plan& plan, const ConstTensorView& key, const ConstTensorView& value,
                   const Workspace& workspace);

}  // namespace ringattn
