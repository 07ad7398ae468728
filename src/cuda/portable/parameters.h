// SPDX-License-Identifier: Apache-2.0
// What the portable kernels are launched with, and the table of their shapes. For any NVIDIA GPU
// since sm_80.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "schedule.h"

namespace ringattn::cuda::portable {

/// Rows of [B, S, heads, dim] in device memory; strides in elements.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t batch = 0, seq = 0, head = 0;
  bool aligned = false;  // rows may be read 16 bytes at a time

  RINGATTN_HOST_DEVICE T* at(std::int64_t b, std::int64_t i, std::int64_t h) const {
    return data + b * batch + i * seq + h * head;
  }
};

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

/// What all kernels take. Pointers are device memory.
template <class T>
struct Common {
  PairSchedule schedule;
  Rows<const T> query, key, value;
  int batch = 0, heads = 0, group = 1;  // query heads; of them, per kv head
  int head_dim = 0, value_dim = 0;
  float scale = 1.0F, cap = 0.0F;  // cap 0: none
  bool first = true, last = true;
};

template <class T>
struct ForwardParameters : Common<T> {
  const double* sinks = nullptr;  // [H] or null
  Rows<T> out;                    // one of the two
  Rows<float> out32;
  float* lse = nullptr;  // or null
  std::int64_t lse_batch = 0, lse_head = 0, lse_seq = 0;
  // Between steps, natural units: acc [B, H, Sq, Dv], max and sum [B, H, Sq].
  float* acc = nullptr;
  float* max = nullptr;
  float* sum = nullptr;
};

template <class T>
struct BackwardParameters : Common<T> {
  Rows<const T> dout;
  const float* lse = nullptr;    // [B, H, Sq], +inf where nothing was seen
  const float* delta = nullptr;  // [B, H, Sq]
  float* dquery_sum = nullptr;   // [B, H, Sq, D], between steps
  Rows<T> dquery;                // one of the two, written by the last step
  Rows<float> dquery32;
  float* dkey = nullptr;    // [B, Sk, G, D], overwritten
  float* dvalue = nullptr;  // [B, Sk, G, Dv], overwritten
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
