// SPDX-License-Identifier: Apache-2.0
// The backward pass for any GPU since sm_80, in two kernels without atomics, so that every bit is
// the same from run to run: one owns query rows and gathers dQ, the other owns key rows and gathers
// dK and dV over the query heads of its group (Dao et al. 2022, arXiv 2205.14135, algorithm 4).
#pragma once

#include "cuda/portable/key_gradient.cuh"
#include "cuda/portable/query_gradient.cuh"

namespace ringattn::cuda::portable {

template <class T, int kDim>
int backward_shared_bytes() {
  constexpr int kQuery = QueryGradientLayout<T, kDim>::kBytes;
  constexpr int kKey = KeyGradientLayout<T, kDim>::kBytes;
  return kQuery > kKey ? kQuery : kKey;
}

template <class T, int kDim>
cudaError_t launch_backward(const BackwardParameters<T>& p, cudaStream_t stream) {
  using Query = QueryGradientShape<T, kDim>;
  using Key = KeyGradientShape<T, kDim>;
  const cudaError_t error = launch(query_gradient_kernel<T, kDim>, p,
                                   row_blocks<Query::kRows>(p.schedule.queries) * p.heads * p.batch,
                                   Query::kThreads, QueryGradientLayout<T, kDim>::kBytes, stream);
  if (error != cudaSuccess) return error;
  return launch(key_gradient_kernel<T, kDim>, p,
                row_blocks<Key::kRows>(p.schedule.keys) * (p.heads / p.group) * p.batch,
                Key::kThreads, KeyGradientLayout<T, kDim>::kBytes, stream);
}

}  // namespace ringattn::cuda::portable
