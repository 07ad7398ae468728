// SPDX-License-Identifier: Apache-2.0
// What the kernels of every architecture are launched with. Pointers are device memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/query_tiles.h"
#include "schedule.h"

namespace ringattn::cuda {

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

/// Tiles [begin, end) of one side.
struct TileSpan {
  int begin = 0, end = 0;
};

/// What all kernels take.
template <class T>
struct Common {
  PairSchedule schedule;
  Rows<const T> query, key, value;
  int batch = 0, heads = 0, group = 1;  // query heads; of them, per kv head
  int head_dim = 0, value_dim = 0;
  float scale = 1.0F, cap = 0.0F;  // cap 0: none
  bool first = true, last = true;
  TileSpan* seen_tiles = nullptr;  // scratch with segment ids, [B, tiles of either side]
};

template <class T>
struct ForwardParameters : Common<T> {
  const double* sinks = nullptr;  // [H] or null
  Rows<T> out;                    // one of the two
  Rows<float> out32;
  float* lse = nullptr;  // or null
  std::int64_t lse_batch = 0, lse_head = 0, lse_seq = 0;
  // Between steps: acc as `acc_tiles` says, max and sum [B, H, Sq], max in log2 units. The same for
  // all kernels: which of them takes a step may depend on the step's tensors.
  QueryTiles acc_tiles;
  float* acc = nullptr;
  float* max = nullptr;
  float* sum = nullptr;
  unsigned* ticket = nullptr;  // scratch
};

template <class T>
struct BackwardParameters : Common<T> {
  Rows<const T> dout;
  const float* lse = nullptr;    // [B, H, Sq], +inf where nothing was seen
  const float* delta = nullptr;  // [B, H, Sq]
  float* dquery_sum = nullptr;   // between steps, as `query_sums` says
  QueryTiles query_sums;
  Rows<T> dquery;  // one of the two, written by the last step
  Rows<float> dquery32;
  float* dkey = nullptr;    // [B, Sk, G, D], overwritten
  float* dvalue = nullptr;  // [B, Sk, G, Dv], overwritten
  Rows<T> dkey_out;         // if set, written instead: rounded
  Rows<T> dvalue_out;
  bool deterministic = false;   // additions to query_sums have an order
  unsigned* ticket = nullptr;   // scratch
  unsigned* added = nullptr;    // scratch, one per part of query_sums
  float* statistics = nullptr;  // of query_sums' tiles: RowStatistics::by_tile
};

}  // namespace ringattn::cuda
