// SPDX-License-Identifier: Apache-2.0
// Scores, their exponentials, and which rows a block of threads owns.
#pragma once

#include "cuda/portable/product_float.cuh"
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

/// tanh x; for 16-bit types as 1 - 2 / (1 + exp 2x), with an error of a few eps of 1.
template <class T>
__device__ float hyperbolic_tangent(float x) {
  if constexpr (sizeof(T) == 4) return tanhf(x);
  return fmaf(-2.0F, __fdividef(1.0F, 1.0F + power_of_two(x * (2.0F * kLog2e))), 1.0F);
}

/// Dot product to score: scale, then the soft cap. 16-bit types without a cap leave the scale to
/// the exponential, unless it is 0 or below: what is hidden must stay -inf.
template <class T>
struct Scoring {
  float scale, cap, inverse_cap;
  float unit;  // of what apply() leaves, in scores

  __device__ Scoring(float scale_in, float cap_in)
      : scale(scale_in),
        cap(cap_in),
        inverse_cap(cap_in == 0.0F ? 0.0F : 1.0F / cap_in),
        unit(sizeof(T) == 2 && cap_in == 0.0F && scale_in > 0.0F ? scale_in : 1.0F) {}

  template <int kBlocks, int kColumns>
  __device__ void apply(Fragment<kBlocks, kColumns>& s) const {
    if (sizeof(T) == 2 && cap == 0.0F && scale > 0.0F) return;
    for_each<kBlocks, kColumns>(s, [&](float& x) { x *= scale; });
    if (cap == 0.0F) return;
    for_each<kBlocks, kColumns>(
        s, [&](float& x) { x = cap * hyperbolic_tangent<T>(x * inverse_cap); });
  }

  /// For the forward: 2^(score - base) with both in log2 units, of which unit2() is one of what
  /// apply() left. A base of unit2() times the largest makes its weight 1 up to one rounding.
  __device__ float unit2() const { return unit * kLog2e; }
  __device__ float weight2(float s, float base) const {
    return power_of_two(fmaf(s, unit2(), -base));
  }

  /// exp(score - base) of what apply() left.
  __device__ float weight(float s, float base) const {
    if constexpr (sizeof(T) == 2) return power_of_two(fmaf(s, unit * kLog2e, -base * kLog2e));
    return power_of_two((s - base) * kLog2e);
  }

  /// d score / d (scale * dot), from the score; 1 without a cap.
  __device__ float slope(float score) const {
    const float t = score * inverse_cap;
    return 1.0F - t * t;
  }
};

/// The first row of this warp within its block of threads, and row r of block m of this lane.
template <int kBlocks>
__device__ int warp_row() {
  return static_cast<int>(threadIdx.x) / 32 * 16 * kBlocks;
}
template <int kBlocks>
__device__ int lane_row(int m, int r) {
  const int thread = thread_number();
  return (thread / 32 * kBlocks + m) * 16 + thread % 32 / 4 + 8 * r;
}

/// `to` where the bits say so, and beyond the piece. `first`: this warp's first row.
template <int kBlocks, int kColumns, int kRows>
__device__ void hide(Fragment<kBlocks, kColumns>& s, const Piece& piece, int first,
                     const SharedBits<kRows, kColumns>& bits, float to) {
  const int lane = thread_number() % 32;
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
          if ((word >> ((column + e) % 32) & 1U) == 0) s[m][n][2 * r + e] = to;
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

/// The rows of a block of threads. Lies in shared memory, as registers are short. kLateFirst: late
/// tiles come first, which under a causal mask are the long ones of queries.
template <int kRows, bool kLateFirst>
struct RowBlock {
  std::int64_t tile, row;
  int batch, head, rows;

  __device__ static RowBlock mine(const Tiling& tiles, int heads) {
    const std::int64_t per_head = row_blocks<kRows>(tiles);
    const std::int64_t bh = blockIdx.x / per_head;
    const std::int64_t turn = blockIdx.x % per_head;
    const std::int64_t block = kLateFirst ? per_head - 1 - turn : turn;
    const std::int64_t pieces = ceil_div(tiles.size, kRows);
    const std::int64_t tile = block / pieces;
    const Tile whole = tiles[tile];
    const std::int64_t begin = block % pieces * kRows;
    const std::int64_t left = whole.rows - begin;
    return {tile, whole.row + begin, static_cast<int>(bh / heads), static_cast<int>(bh % heads),
            static_cast<int>(left < kRows ? left : kRows)};
  }
};

/// Where a row of a block of threads lies among those of [B, H, Sq].
template <class T, class Block>
__device__ std::int64_t state_row(const Common<T>& p, const Block& own, int row) {
  return (static_cast<std::int64_t>(own.batch) * p.heads + own.head) *
             p.schedule.queries.positions.size() +
         own.row + row;
}

/// Calls f(sum, x) for what this lane holds of row r of a block, which is row `row` of the block of
/// threads: x and where its sum lies between steps, among `sums` as `tiles` says.
template <class T, int kTiles, class Block, class F>
__device__ void for_sums(const Common<T>& p, const QueryTiles& tiles, float* sums, int dim,
                         const Block& own, int row, float (&c)[kTiles][4], int r, const F& f) {
  const std::int64_t head = static_cast<std::int64_t>(own.batch) * p.heads + own.head;
  const int column = 2 * (threadIdx.x % 4);  // and the next, which lies beside it
  // kStep: to the columns 8 further. A constant: addresses that are not known take registers.
  const auto of_row = [&]<int kStep>(float* at) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (8 * n + column < dim) f(at[n * kStep], c[n][2 * r]);
      if (8 * n + column + 1 < dim) f(at[n * kStep + 1], c[n][2 * r + 1]);
    }
  };
  if (tiles.rows > 0) {
    of_row.template operator()<QueryTiles::kPart / 8>(sums +
                                                      tiles.index(head, own.row + row, column));
  } else {
    of_row.template operator()<8>(sums + state_row(p, own, row) * dim + column);
  }
}

}  // namespace ringattn::cuda::portable
