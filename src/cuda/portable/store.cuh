// SPDX-License-Identifier: Apache-2.0
// Rows of a warp's results between registers and global memory, two columns at a time, and the
// launch of a kernel.
#pragma once

#include "cuda/portable/product.cuh"

namespace ringattn::cuda::portable {

__device__ inline void write_pair(float* to, float x, float y) {
  *reinterpret_cast<float2*>(to) = make_float2(x, y);
}
template <class T>
__device__ void write_pair(T* to, float x, float y) {
  *reinterpret_cast<std::uint32_t*>(to) = pack<T>(x, y);
}

/// Writes this lane's columns of row r (0: the upper one) of a block of 16: those below `dim`.
template <class T, int kTiles>
__device__ void write_row(const float (&c)[kTiles][4], int r, T* to, int dim) {
  const int first = 2 * (threadIdx.x % 4);
  if (dim % 2 == 0 && reinterpret_cast<std::uintptr_t>(to) % (2 * sizeof(T)) == 0) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int column = 8 * n + first;
      if (column < dim) write_pair(to + column, c[n][2 * r], c[n][2 * r + 1]);
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int column = 8 * n + first;
    if (column < dim) to[column] = from_float<T>(c[n][2 * r]);
    if (column + 1 < dim) to[column + 1] = from_float<T>(c[n][2 * r + 1]);
  }
}

template <class Kernel, class Parameters>
cudaError_t launch(Kernel kernel, const Parameters& p, std::int64_t blocks, int threads, int bytes,
                   cudaStream_t stream) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace ringattn::cuda::portable
