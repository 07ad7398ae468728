// SPDX-License-Identifier: Apache-2.0
// Scores, their exponentials, and which rows a block of threads owns.
#pragma once

#include "cuda/portable/product.cuh"
#include "cuda/portable/walk.cuh"
#include "merge.h"

namespace ringattn::cuda::portable {

constexpr float kLog2e = 1.4426950408889634F;

/// 2^x by the special function unit: about 2 ulp; what is denormal becomes 0.
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// exp(x - y). 16-bit operands have no use for the exact difference.
template <class T>
__device__ float exponential(float x, float y) {
  if constexpr (sizeof(T) == 2) return power_of_two(fmaf(x, kLog2e, -y * kLog2e));
  return power_of_two((x - y) * kLog2e);
}

/// Dot product to score: scale, then the soft cap.
struct Scoring {
  float scale, cap, inverse_cap;

  __device__ Scoring(float scale_in, float cap_in)
      : scale(scale_in), cap(cap_in), inverse_cap(cap_in == 0.0F ? 0.0F : 1.0F / cap_in) {}

  /// Products to scores.
  template <int kBlocks, int kColumns>
  __device__ void apply(Fragment<kBlocks, kColumns>& s) const {
    for_each<kBlocks, kColumns>(s, [&](float& x) { x *= scale; });
    if (cap == 0.0F) return;
    for_each<kBlocks, kColumns>(s, [&](float& x) { x = cap * tanhf(x * inverse_cap); });
  }

  /// d score / d (scale * dot), from the score.
  __device__ float slope(float score) const {
    const float t = score * inverse_cap;
    return cap == 0.0F ? 1.0F : 1.0F - t * t;
  }
};

/// -inf where the bits say so, and beyond the piece. `first`: this warp's first row.
template <int kBlocks, int kColumns, int kRows>
__device__ void hide(Fragment<kBlocks, kColumns>& s, const Piece& piece, int first,
                     const SharedBits<kRows, kColumns>& bits) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first + 16 * m + lane / 4 + 8 * r;
      std::uint32_t word = 0;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        const int column = 8 * n + 2 * (lane % 4);
        if (n % 4 == 0) {
          word = piece.masked ? bits.words[row][n / 4] : bit_range(0, piece.rows - 8 * n);
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if ((word >> ((column + e) % 32) & 1U) == 0) s[m][n][2 * r + e] = -kInfinity<float>;
        }
      }
    }
  }
}

/// Blocks of threads per (batch row, head): tiles cut in pieces of kRows.
template <int kRows>
__host__ __device__ std::int64_t row_blocks(const Tiling& tiles) {
  return tiles.count() * ceil_div(tiles.size, kRows);
}

/// The rows of this block. Late tiles come first: under a causal mask they are the long ones.
template <int kRows>
struct RowBlock {
  int batch, head, rows;
  std::int64_t tile, row;

  __device__ RowBlock(const Tiling& tiles, int heads) {
    const std::int64_t per_head = row_blocks<kRows>(tiles);
    const std::int64_t bh = blockIdx.x / per_head;
    const std::int64_t block = per_head - 1 - blockIdx.x % per_head;
    const std::int64_t pieces = ceil_div(tiles.size, kRows);
    batch = static_cast<int>(bh / heads);
    head = static_cast<int>(bh % heads);
    tile = block / pieces;
    const Tile rows_of_tile = tiles[tile];
    const std::int64_t begin = block % pieces * kRows;
    row = rows_of_tile.row + begin;
    rows = static_cast<int>(rows_of_tile.rows - begin < kRows ? rows_of_tile.rows - begin : kRows);
  }
};

}  // namespace ringattn::cuda::portable
