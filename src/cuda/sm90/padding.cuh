// SPDX-License-Identifier: Apache-2.0
// Padding may hold anything, and what is not finite times a weight of 0 is not 0: padded rows that
// products sum over become 0 where they lie in shared memory.
#pragma once

#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/steps.cuh"

namespace ringattn::cuda::sm90 {

/// Of the tile of kPanels panels of kRows rows that begins with row `row` of the shard: rows whose
/// segment id is negative, and those behind the first `rows`, which are not its own. By the
/// threads that find bits; who has seen them arrive at a barrier after this may begin products.
template <int kPanels, int kRows>
RINGATTN_DEVICE void clear_padding(std::uint32_t tile, const ShardSegments& segments, int batch,
                                   std::int64_t shard_rows, int row, int rows, int thread) {
  const std::int32_t* ids = segments.ids + batch * shard_rows + row;
#pragma unroll 1
  for (int i = thread; i < kRows; i += kBitThreads) {
    if (i < rows && ids[i] >= 0) continue;
#pragma unroll 1
    for (int n = 0; n < 8 * kPanels; ++n) {
      ptx::store_shared(tile + n / 8 * kRows * 128 + i * 128 + n % 8 * 16, 0.0F, 0.0F, 0.0F, 0.0F);
    }
  }
  ptx::fence_shared();
}

/// Where step `number` finds its stage of a ring of kStages that one copy per step fills.
template <int kStages>
struct StepStage {
  int at;
  unsigned parity;

  RINGATTN_DEVICE explicit StepStage(int number)
      : at(number % kStages), parity(static_cast<unsigned>(number / kStages) & 1U) {}
};

}  // namespace ringattn::cuda::sm90
