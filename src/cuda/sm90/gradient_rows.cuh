// SPDX-License-Identifier: Apache-2.0
// The key rows of a thread as they lie in global memory: gradients of keys and values.
#pragma once

#include "cuda/sm90/rows.cuh"

namespace ringattn::cuda::sm90 {

/// Writes factor * acc for rows `row` and row + 8 of the shard, of which `valid` lie at or after
/// the first: rounded, where `rounded` is set, to sums [B, Sk, G, dim] otherwise.
template <class T, int kDim>
RINGATTN_DEVICE void store_gradient(const float (&acc)[kDim / 2], const Rows<T>& rounded,
                                    float* sums, const BackwardParameters<T>& p, int dim, int batch,
                                    int head, int row, int valid, float factor) {
  if (rounded.data != nullptr) {
    store_rows<T, kDim>(rounded.at(batch, row, head), rounded.seq, valid, dim,
                        [&](int i) { return factor * acc[i]; });
    return;
  }
  const std::int64_t stride = static_cast<std::int64_t>(p.own_heads) * dim;
  const std::int64_t rows = p.own_counts[0] + p.own_counts[1];
  float* to = sums + (batch * rows + row) * stride + head * dim + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
    if (8 * n >= dim) break;
    if (valid > 0) {
      __stcs(reinterpret_cast<float2*>(to + 8 * n),
             make_float2(factor * acc[4 * n], factor * acc[4 * n + 1]));
    }
    if (valid > 8) {
      __stcs(reinterpret_cast<float2*>(to + 8 * stride + 8 * n),
             make_float2(factor * acc[4 * n + 2], factor * acc[4 * n + 3]));
    }
  }
}

}  // namespace ringattn::cuda::sm90
