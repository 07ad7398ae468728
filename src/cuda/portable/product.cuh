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
__device__ void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);
template <>
__device__ inline void mma<__nv_bfloat16>(float (&c)[4], const std::uint32_t (&a)[4],
                                          std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma<__half>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                   std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The left factor of a product: rows [first, first + 16 kBlocks) of a tile.
template <class T, int kRows, int kDim>
struct WarpRows {
  SharedTile<T, kRows, kDim> tile;
  int first;

  /// Columns 16 k to 16 k + 15 as operands. Of a swizzled tile, chunk 2 k + h lies at that of h,
  /// with the bits of 2 k flipped.
  template <int kBlocks>
  __device__ void operands(std::uint32_t (&a)[kBlocks][4], int k) const {
    const int lane = threadIdx.x % 32;
    const std::uint32_t at = tile.chunk(first + lane % 16, lane / 16) ^ (k << 5);
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) load_matrices(a[m], at + 16 * m * tile.kRowBytes);
  }
};

/// The same in registers, for rows that stay.
template <class T, int kBlockCount, int kDim>
struct HeldRows {
  std::uint32_t part[kDim / 16 + (kDim == 0)][kBlockCount][4];

  /// `rows` and `dim` exist from `from` on; the rest becomes 0.
  __device__ void read(const T* from, std::int64_t stride, int rows, int dim, bool aligned) {
    const auto each = [&](const auto& pair) {  // of columns
      const int lane = threadIdx.x % 32;
#pragma unroll
      for (int m = 0; m < kBlockCount; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = 16 * m + lane / 4 + i % 2 * 8;
          const T* source = from + row * stride;
#pragma unroll
          for (int k = 0; k < kDim / 16; ++k) {
            const int column = 16 * k + 2 * (lane % 4) + i / 2 * 8;
            part[k][m][i] = pair(source + column, row < rows ? dim - column : 0);
          }
        }
      }
    };
    if (aligned) {
      each([](const T* at, int count) {
        return count > 0 ? *reinterpret_cast<const std::uint32_t*>(at) : 0U;
      });
    } else {
      each([](const T* at, int count) {
        return pack<T>(count > 0 ? to_float(at[0]) : 0.0F, count > 1 ? to_float(at[1]) : 0.0F);
      });
    }
  }

  template <int kBlocks>
  __device__ void operands(std::uint32_t (&a)[kBlocks][4], int k) const {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[m][i] = part[k][m][i];
  }
};

template <class T>
struct Product {
  /// Bytes of shared memory that times() needs per row of the block and warp.
  template <int kColumns>
  static constexpr int kScratchBytes = 0;

  /// c = a b^T.
  template <int kBlocks, class Left, int kRowsB, int kDim>
  static __device__ void transposed(Fragment<kBlocks, kRowsB>& c, const Left& a,
                                    const SharedTile<T, kRowsB, kDim>& b) {
    const int lane = threadIdx.x % 32;
    const std::uint32_t start = b.chunk(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    clear<kBlocks, kRowsB>(c);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      std::uint32_t left[kBlocks][4];
      a.operands(left, k);
#pragma unroll
      for (int n = 0; n < kRowsB / 16; ++n) {
        std::uint32_t right[4];
        load_matrices(right, (start ^ (k << 5)) + 16 * n * b.kRowBytes);
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
    const std::uint32_t start = b.chunk(lane % 16, lane / 16);
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
        load_transposed(right, (start ^ (n << 5)) + 16 * k * b.kRowBytes);
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
          mma<T>(c[m][2 * n], left[m], right[0], right[1]);
          mma<T>(c[m][2 * n + 1], left[m], right[2], right[3]);
        }
      }
    }
  }
};

}  // namespace ringattn::cuda
