// SPDX-License-Identifier: Apache-2.0
// The products of product.cuh for float32.
#pragma once

#include "cuda/portable/product.cuh"

namespace ringattn::cuda {

template <>
struct Product<float> {
  /// w goes through shared memory, as each lane needs whole rows of it.
  template <int kColumns>
  static constexpr int kScratchBytes = (kColumns + 4) * 4;

  template <int kBlocks, int kRowsA, int kRowsB, int kDim>
  static __device__ void transposed(Fragment<kBlocks, kRowsB>& c,
                                    const WarpRows<float, kRowsA, kDim>& a,
                                    const SharedTile<float, kRowsB, kDim>& b) {
    static_assert(kBlocks == 1);
    const int lane = threadIdx.x % 32;
    clear<kBlocks, kRowsB>(c);
#pragma unroll 1
    for (int k = 0; k < kDim / 4; ++k) {
      const float4 a0 = load_shared4(a.tile.chunk(a.first + lane / 4, k));
      const float4 a1 = load_shared4(a.tile.chunk(a.first + lane / 4 + 8, k));
#pragma unroll
      for (int n = 0; n < kRowsB / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float4 x = load_shared4(b.chunk(8 * n + 2 * (lane % 4) + e, k));
          float& top = c[0][n][e];
          float& low = c[0][n][e + 2];
          top = fmaf(a0.x, x.x, top), low = fmaf(a1.x, x.x, low);
          top = fmaf(a0.y, x.y, top), low = fmaf(a1.y, x.y, low);
          top = fmaf(a0.z, x.z, top), low = fmaf(a1.z, x.z, low);
          top = fmaf(a0.w, x.w, top), low = fmaf(a1.w, x.w, low);
        }
      }
    }
  }

  /// `scratch`: 16 rows of kScratchBytes<kRowsB> that belong to this warp.
  template <int kBlocks, int kRowsB, int kDim>
  static __device__ void times(Fragment<kBlocks, kDim>& c, const Fragment<kBlocks, kRowsB>& w,
                               const SharedTile<float, kRowsB, kDim>& b, std::uint32_t scratch) {
    const int lane = threadIdx.x % 32;
    constexpr int kPitch = kScratchBytes<kRowsB>;
    const std::uint32_t row = scratch + lane / 4 * kPitch;
#pragma unroll
    for (int n = 0; n < kRowsB / 8; ++n) {
      const int column = (8 * n + 2 * (lane % 4)) * 4;
      store_shared2(row + column, w[0][n][0], w[0][n][1]);
      store_shared2(row + 8 * kPitch + column, w[0][n][2], w[0][n][3]);
    }
    __syncwarp();
#pragma unroll 1
    for (int j = 0; j < kRowsB; j += 2) {
      const float2 w0 = load_shared2(row + j * 4);
      const float2 w1 = load_shared2(row + 8 * kPitch + j * 4);
      const std::uint32_t x = b.base + j * SharedTile<float, kRowsB, kDim>::kRowBytes;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const std::uint32_t at = x + (8 * n + 2 * (lane % 4)) * 4;
        const float2 p = load_shared2(at);
        const float2 q = load_shared2(at + SharedTile<float, kRowsB, kDim>::kRowBytes);
        c[0][n][0] = fmaf(w0.y, q.x, fmaf(w0.x, p.x, c[0][n][0]));
        c[0][n][1] = fmaf(w0.y, q.y, fmaf(w0.x, p.y, c[0][n][1]));
        c[0][n][2] = fmaf(w1.y, q.x, fmaf(w1.x, p.x, c[0][n][2]));
        c[0][n][3] = fmaf(w1.y, q.y, fmaf(w1.x, p.y, c[0][n][3]));
      }
    }
    __syncwarp();
  }
};

}  // namespace ringattn::cuda
