// SPDX-License-Identifier: Apache-2.0
// Device memory of the current CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/parameters.h"
#include "memory.h"

namespace ringattn::cuda {

const Memory& device_memory();

/// sum[i] += part[i], and rounding of contiguous [B, S, heads, dim] sums to the dtype of `out`.
void accumulate(float* sum, const float* part, std::int64_t n, Stream stream);
void store(const float* sum, const TensorView& out, Stream stream);

/// Per tile of one side, [batch, own_tiles], from the first to the last tile of the other that may
/// hold one of its segment ids, by the bounds of both; begin >= end if there is none.
cudaError_t find_seen_tiles(const SegmentBounds* own, int own_tiles, const SegmentBounds* others,
                            int other_tiles, int batch, TileSpan* seen, cudaStream_t stream);

}  // namespace ringattn::cuda
