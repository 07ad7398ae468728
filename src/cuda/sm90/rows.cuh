// SPDX-License-Identifier: Apache-2.0
// The query rows of a thread as they lie in global memory: the state between steps, and results.
#pragma once

#include "cuda/sm90/parameters.h"
#include "cuda/sm90/wgmma.cuh"
#include "merge.h"

namespace ringattn::cuda::sm90 {

template <int kCount>
RINGATTN_DEVICE void rescale(float (&acc)[kCount], float factor0, float factor1) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    acc[i] *= factor0;
    acc[i + 1] *= factor0;
    acc[i + 2] *= factor1;
    acc[i + 3] *= factor1;
  }
}

/// Rounds a thread's part of two rows, `to` and 8 further on, of which `valid` lie at or after the
/// first; value(i): element i as wgmma.cuh numbers them. Neighbouring threads exchange halves of
/// two groups of 8 columns, so that each has 4 neighbouring columns and a row of a warp's store is
/// a sector.
template <class T, int kDim, class Value>
RINGATTN_DEVICE void store_rows(T* to, std::int64_t stride, int valid, int dim,
                                const Value& value) {
  const bool odd = threadIdx.x % 2 != 0;
  to += (odd ? 8 : 0) + 2 * (threadIdx.x & 2);
  dim -= odd ? 8 : 0;
#pragma unroll
  for (int column = 0; column < kDim; column += 16) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = column / 2 + 2 * half;
      const std::uint32_t early = ptx::pack<T>(value(at), value(at + 1));
      const std::uint32_t late = ptx::pack<T>(value(at + 4), value(at + 5));
      const std::uint32_t other = __shfl_xor_sync(0xFFFFFFFFU, odd ? early : late, 1);
      if (valid > 8 * half && column < dim) {
        *reinterpret_cast<uint2*>(to + 8 * half * stride + column) =
            make_uint2(odd ? other : early, odd ? late : other);
      }
    }
  }
}

constexpr float kLn2 = 0.6931471805599453F;

/// A thread's part of a block of query rows: rows `row` and row + 8 of the shard.
template <class T, int kDim>
struct Mine {
  const ForwardParameters<T>& p;
  int batch, head, row, valid;  // valid: of the block's rows, how many lie at or after `row`
  int column;                   // first of its columns in a group of 8

  RINGATTN_DEVICE std::int64_t state_row() const {
    return (static_cast<std::int64_t>(batch) * p.heads + head) *
               (p.own_counts[0] + p.own_counts[1]) +
           row;
  }

  /// The state of earlier steps; without any, that of rows that saw nothing. No result of a load is
  /// used here: all of them are on their way together.
  template <class S>
  RINGATTN_DEVICE void load_state(S& softmax, float (&acc)[kDim / 2]) const {
    softmax.top0 = softmax.top1 = -kInfinity<float>;
    softmax.sum0 = softmax.sum1 = 0.0F;
    softmax.lost0 = softmax.lost1 = 0.0F;
    softmax.factor0 = softmax.factor1 = 1.0F;
    if (p.first) {
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) acc[i] = 0.0F;
      return;
    }
    const std::int64_t at = state_row();
    if (valid > 0) softmax.top0 = p.max[at];
    if (valid > 8) softmax.top1 = p.max[at + 8];
    if (valid > 0 && column == 0) softmax.sum0 = p.sum[at];
    if (valid > 8 && column == 0) softmax.sum1 = p.sum[at + 8];
    if (!group_there()) return;
    const auto* from = reinterpret_cast<const float4*>(acc_of_thread());
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const float4 x = __ldcs(from + n * (QueryTiles::kPart / 32));
      acc[4 * n] = x.x;
      acc[4 * n + 1] = x.y;
      acc[4 * n + 2] = x.z;
      acc[4 * n + 3] = x.w;
    }
  }

  /// Between steps: the state. After the last: sinks, division, rounding.
  template <class S>
  RINGATTN_DEVICE void store(float (&acc)[kDim / 2], const S& softmax) const {
    const float sum0 = quad_sum(softmax.sum0);
    const float sum1 = quad_sum(softmax.sum1);
    // What was gathered belongs to packed weights, lse and the state to exact ones.
    const float exact0 = __fdividef(sum0, sum0 + quad_sum(softmax.lost0));
    const float exact1 = __fdividef(sum1, sum1 + quad_sum(softmax.lost1));
    if (!p.last) {
      rescale(acc, sum0 > 0.0F ? exact0 : 1.0F, sum1 > 0.0F ? exact1 : 1.0F);
      store_state(acc, softmax.top0, softmax.top1, sum0, sum1);
      return;
    }
    const float sink = p.sinks == nullptr ? -kInfinity<float> : static_cast<float>(p.sinks[head]);
    RowResult<float> r0 = finish(softmax.top0 * kLn2, sum0, sink);
    RowResult<float> r1 = finish(softmax.top1 * kLn2, sum1, sink);
    r0.factor = r0.zero ? 0.0F : r0.factor * exact0;
    r1.factor = r1.zero ? 0.0F : r1.factor * exact1;
    // Whatever was gathered for such a row, it may be NaN.
    if (__any_sync(0xFFFFFFFFU, r0.zero | r1.zero) != 0) {
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) {
        if ((i & 2) == 0 ? r0.zero : r1.zero) acc[i] = 0.0F;
      }
    }
    if (p.lse != nullptr && column == 0) {
      float* lse = p.lse + batch * p.lse_batch + head * p.lse_head + row * p.lse_seq;
      if (valid > 0) lse[0] = r0.lse;
      if (valid > 8) lse[8 * p.lse_seq] = r1.lse;
    }
    if (p.out.data == nullptr) {
      store_wide(acc, r0.factor, r1.factor);
      return;
    }
    store_rows<T, kDim>(p.out.at(batch, row, head), p.out.seq, valid, p.value_dim,
                        [&](int i) { return acc[i] * ((i & 2) == 0 ? r0.factor : r1.factor); });
  }

 private:
  /// Where this thread's row lies among those of its warpgroup.
  RINGATTN_DEVICE static int row_in_group() {
    return static_cast<int>(threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4);
  }
  /// Does the block have rows for this warpgroup?
  RINGATTN_DEVICE bool group_there() const { return valid + row_in_group() > 0; }
  /// The first four of this thread's accumulators; those of 8 columns further lie kPart / 8 behind.
  RINGATTN_DEVICE float* acc_of_thread() const {
    const int first = row - row_in_group();
    const bool late = first >= p.own_counts[0];
    const int tile =
        late ? p.own_tiles[0] + (first - p.own_counts[0]) / kGroupRows : first / kGroupRows;
    const std::int64_t tiles =
        (static_cast<std::int64_t>(batch) * p.heads + head) * p.own_tiles[1] + tile;
    return p.acc + tiles * (kGroupRows * kDim) + threadIdx.x % 128 * 4;
  }

  RINGATTN_DEVICE static float quad_sum(float x) {
    x += __shfl_xor_sync(0xFFFFFFFFU, x, 1);
    return x + __shfl_xor_sync(0xFFFFFFFFU, x, 2);
  }

  RINGATTN_DEVICE void store_state(const float (&acc)[kDim / 2], float max0, float max1, float sum0,
                                   float sum1) const {
    const std::int64_t at = state_row();
    if (column == 0) {
      if (valid > 0) {
        p.max[at] = max0;
        p.sum[at] = sum0;
      }
      if (valid > 8) {
        p.max[at + 8] = max1;
        p.sum[at + 8] = sum1;
      }
    }
    if (!group_there()) return;
    auto* to = reinterpret_cast<float4*>(acc_of_thread());
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      __stcs(to + n * (QueryTiles::kPart / 32),
             make_float4(acc[4 * n], acc[4 * n + 1], acc[4 * n + 2], acc[4 * n + 3]));
    }
  }

  RINGATTN_DEVICE void store_wide(const float (&acc)[kDim / 2], float factor0,
                                  float factor1) const {
    float* to = p.out32.at(batch, row, head) + column;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      if (8 * n >= p.value_dim) break;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (valid > 0) to[8 * n + e] = acc[4 * n + e] * factor0;
        if (valid > 8) to[8 * p.out32.seq + 8 * n + e] = acc[4 * n + 2 + e] * factor1;
      }
    }
  }
};

}  // namespace ringattn::cuda::sm90
