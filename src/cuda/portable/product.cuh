// SPDX-License-Identifier: Apache-2.0
// The two products that attention is made of, for one warp: C = A B^T with both factors in shared
// memory, and C += W B with W in registers, as the first left it. 16-bit types use the matrix
// units (mma.sync m16n8k16); float32 has plain fused multiply-adds, as the matrix units would
// round its operands to 11 bits.
//
// A warp holds kBlocks blocks of 16 rows. Element e of c[m][n] of lane l is
//     row 16 m + l / 4 + (e < 2 ? 0 : 8),   column 8 n + 2 (l % 4) + e % 2.
#pragma once

#include "cuda/portable/tile.cuh"

namespace ringattn::cuda {

template <int kBlocks, int kColumns>
using Fragment = float[kBlocks][kColumns / 8][4];

template <int kBlocks, int kColumns, class F>
__device__ void for_each(Fragment<kBlocks, kColumns>& c, const F& f) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m)
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) f(c[m][n][e]);
}

template <int kBlocks, int kColumns>
__device__ void clear(Fragment<kBlocks, kColumns>& c) {
  for_each<kBlocks, kColumns>(c, [](float& x) { x = 0.0F; });
}

__device__ inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
__device__ inline void load_transposed(std::uint32_t (&r)[4], std::uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

template <class T>
__device__ std::uint32_t pack(float lo, float hi);
template <>
__device__ inline std::uint32_t pack<__nv_bfloat16>(float lo, float hi) {
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
template <>
__device__ inline std::uint32_t pack<__half>(float lo, float hi) {
  std::uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}

template <class T>
__device__ void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                    std::uint32_t b1);
template <>
__device__ inline void mma<__nv_bfloat16>(float (&c)[4], const std::uint32_t (&a)[4],
                                          std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma<__half>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                   std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <class T>
struct Product {
  /// Bytes of shared memory that times() needs per row of the block and warp.
  template <int kColumns>
  static constexpr int kScratchBytes = 0;

  /// c = rows [first, first + 16 kBlocks) of a, times b^T.
  template <int kBlocks, int kRowsA, int kRowsB, int kDim>
  static __device__ void transposed(Fragment<kBlocks, kRowsB>& c,
                                    const SharedTile<T, kRowsA, kDim>& a, int first,
                                    const SharedTile<T, kRowsB, kDim>& b) {
    const int lane = threadIdx.x % 32;
    clear<kBlocks, kRowsB>(c);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      std::uint32_t left[kBlocks][4];
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        load_matrices(left[m], a.chunk(first + 16 * m + lane % 16, 2 * k + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kRowsB / 16; ++n) {
        std::uint32_t right[4];
        load_matrices(right, b.chunk(16 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
          mma<T>(c[m][2 * n], left[m], right[0], right[1]);
          mma<T>(c[m][2 * n + 1], left[m], right[2], right[3]);
        }
      }
    }
  }

  /// c += w b, with w rounded to T.
  template <int kBlocks, int kRowsB, int kDim>
  static __device__ void times(Fragment<kBlocks, kDim>& c, const Fragment<kBlocks, kRowsB>& w,
                               const SharedTile<T, kRowsB, kDim>& b, std::uint32_t) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kRowsB / 16; ++k) {
      std::uint32_t left[kBlocks][4];
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        left[m][0] = pack<T>(w[m][2 * k][0], w[m][2 * k][1]);
        left[m][1] = pack<T>(w[m][2 * k][2], w[m][2 * k][3]);
        left[m][2] = pack<T>(w[m][2 * k + 1][0], w[m][2 * k + 1][1]);
        left[m][3] = pack<T>(w[m][2 * k + 1][2], w[m][2 * k + 1][3]);
      }
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        std::uint32_t right[4];
        load_transposed(right, b.chunk(16 * k + lane % 16, 2 * n + lane / 16));
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
          mma<T>(c[m][2 * n], left[m], right[0], right[1]);
          mma<T>(c[m][2 * n + 1], left[m], right[2], right[3]);
        }
      }
    }
  }
};

__device__ inline float2 load_shared2(std::uint32_t from) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(from) : "memory");
  return x;
}
__device__ inline float4 load_shared4(std::uint32_t from) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(from)
               : "memory");
  return x;
}
__device__ inline void store_shared2(std::uint32_t to, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(x), "f"(y) : "memory");
}

template <>
struct Product<float> {
  /// w goes through shared memory, as each lane needs whole rows of it.
  template <int kColumns>
  static constexpr int kScratchBytes = (kColumns + 4) * 4;

  template <int kBlocks, int kRowsA, int kRowsB, int kDim>
  static __device__ void transposed(Fragment<kBlocks, kRowsB>& c,
                                    const SharedTile<float, kRowsA, kDim>& a, int first,
                                    const SharedTile<float, kRowsB, kDim>& b) {
    static_assert(kBlocks == 1);
    const int lane = threadIdx.x % 32;
    clear<kBlocks, kRowsB>(c);
#pragma unroll 1
    for (int k = 0; k < kDim / 4; ++k) {
      const float4 a0 = load_shared4(a.chunk(first + lane / 4, k));
      const float4 a1 = load_shared4(a.chunk(first + lane / 4 + 8, k));
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
