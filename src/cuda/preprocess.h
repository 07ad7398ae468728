// SPDX-License-Identifier: Apache-2.0
// What the backward needs once per row before its first step.
#pragma once

#include "backend.h"

namespace ringattn::cuda {

/// Fills lse and delta, both [B, H, Sq] (docs/contract.md: delta = out . dout - dlse; rows that saw
/// nothing get lse = +inf), and the heads' sink gradients if there are sinks.
void preprocess(const BackwardStep& step, float* lse, float* delta);

}  // namespace ringattn::cuda
