// SPDX-License-Identifier: Apache-2.0
// Device memory of the current CUDA device.
#pragma once

#include "memory.h"

namespace ringattn::cuda {

const Memory& device_memory();

/// sum[i] += part[i], and rounding of contiguous [B, S, heads, dim] sums to the dtype of `out`.
void accumulate(float* sum, const float* part, std::int64_t n, Stream stream);
void store(const float* sum, const TensorView& out, Stream stream);

}  // namespace ringattn::cuda
