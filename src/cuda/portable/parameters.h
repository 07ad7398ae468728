// SPDX-License-Identifier: Apache-2.0
// The table of shapes of the portable kernels, and their launches. For any NVIDIA GPU since sm_80.
// Shared memory stays below the 99 KB that a block may have on sm_86, but for float32 at 256.
#pragma once

#include "cuda/parameters.h"

namespace ringattn::cuda::portable {

/// Of a block of threads: its warps, with 16 kBlocks rows each that it owns, and kColumns of the
/// other side at every turn of its loop. kResident: blocks that should fit on a multiprocessor.
template <class T, int kDim>
struct ForwardShape {
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = kHalf && kDim <= 128 ? 2 : 1;
  static constexpr int kRows = 16 * kBlocks * kThreads / 32;
  static constexpr int kColumns = kHalf ? (kDim <= 64 ? 128 : 64) : 4096 / kDim;
  static constexpr int kResident = kHalf ? 2 : 1;
};

/// Owns query rows.
template <class T, int kDim>
struct QueryGradientShape {
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = kHalf && kDim <= 128 ? 2 : 1;
  static constexpr int kRows = 16 * kBlocks * kThreads / 32;
  static constexpr int kColumns = kHalf ? (kDim <= 64 ? 64 : 32) : (kDim <= 64 ? 32 : 16);
  static constexpr int kResident = kHalf ? 2 : 1;
};

/// Owns key rows, 16 kBlocks per pair of warps: one gathers dV, the other dK.
template <class T, int kDim>
struct KeyGradientShape {
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kThreads = 256;
  static constexpr int kPairs = kThreads / 64;
  static constexpr int kBlocks = kHalf && kDim <= 128 ? 2 : 1;
  static constexpr int kRows = 16 * kBlocks * kPairs;
  static constexpr int kColumns = kHalf ? (kDim <= 64 ? 64 : 32) : (kDim <= 64 ? 16 : 8);
  static constexpr bool kAhead = kHalf && kDim <= 128;  // scores half a step ahead
  // Columns of keys or values that a warp holds in registers.
  static constexpr int kHeld = !kHalf ? 0 : kDim <= 128 ? 64 : 192;
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
