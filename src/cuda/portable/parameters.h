// SPDX-License-Identifier: Apache-2.0
// The table of shapes of the portable kernels, and their launches. For any NVIDIA GPU since sm_80.
#pragma once

#include "cuda/parameters.h"

namespace ringattn::cuda::portable {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

/// Rows of a block of threads, and columns of one turn of its loop.
template <class T, int kDim>
struct ForwardShape {
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kBlocks = kHalf && kDim <= 128 ? 2 : 1;  // of 16 rows, per warp
  static constexpr int kRows = 16 * kBlocks * kWarps;
  static constexpr int kColumns = kHalf ? (kDim <= 64 ? 64 : 32) : (kDim <= 64 ? 64 : 4096 / kDim);
  static constexpr int kStages = kHalf ? 2 : 1;
};

template <class T, int kDim>
struct BackwardShape {
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kColumns = kHalf ? (kDim <= 64    ? 64
                                           : kDim <= 128 ? 32
                                                         : 16)
                                        : (kDim <= 64 ? 32 : 16);
  static constexpr int kStages = kHalf && kDim <= 128 ? 2 : 1;
};

/// Launches; instantiated once per type and head_dim in a file of its own.
template <class T, int kDim>
cudaError_t launch_forward(const ForwardParameters<T>& parameters, cudaStream_t stream);
template <class T, int kDim>
cudaError_t launch_backward(const BackwardParameters<T>& parameters, cudaStream_t stream);

/// Bytes of shared memory that a block of the largest of these kernels needs.
template <class T, int kDim>
int forward_shared_bytes();
template <class T, int kDim>
int backward_shared_bytes();

}  // namespace ringattn::cuda::portable
