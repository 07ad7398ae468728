// SPDX-License-Identifier: Apache-2.0
// The forward pass for any GPU since sm_80 (FlashAttention-2, Dao 2023, arXiv 2307.08691,
// algorithm 1): a block of threads owns query rows, walks the key tiles that they see, and carries
// the softmax state from step to step.
#pragma once

#include "cuda/portable/parameters.h"
#include "cuda/portable/product.cuh"
#include "cuda/portable/scores.cuh"
#include "cuda/portable/tile.cuh"
#include "cuda/portable/walk.cuh"
#include "merge.h"

namespace ringattn::cuda::portable {

template <class T, int kDim>
struct ForwardLayout {
  using Shape = ForwardShape<T, kDim>;
  using QueryTile = SharedTile<T, Shape::kRows, kDim>;
  using KeyTile = SharedTile<T, Shape::kColumns, kDim>;
  static constexpr int kKeys = QueryTile::kBytes;
  static constexpr int kValues = kKeys + Shape::kStages * KeyTile::kBytes;
  static constexpr int kScratch = kValues + Shape::kStages * KeyTile::kBytes;
  static constexpr int kWarpScratch = 16 * Product<T>::template kScratchBytes<Shape::kColumns>;
  static constexpr int kBytes = kScratch + kWarps * kWarpScratch;
};

/// The softmax state of a warp's rows: of lane l, rows 16 m + l / 4 (+ 8).
template <int kBlocks>
struct RowState {
  float max[kBlocks][2];
  float sum[kBlocks][2];  // of this lane's columns only
};

/// Scores to weights; rescales what was gathered before.
template <class T, int kBlocks, int kColumns, int kDim>
__device__ void soften(Fragment<kBlocks, kColumns>& s, RowState<kBlocks>& state,
                       Fragment<kBlocks, kDim>& acc) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = state.max[m][r];
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        // Like fmaxf, this drops a NaN; it stays in s and makes the sum NaN.
        top = fmaxf(top, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
      }
      top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFU, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFU, top, 2));
      const float base = reference(top);
      const float factor = exponential<T>(state.max[m][r], base);
      state.max[m][r] = top;
      state.sum[m][r] *= factor;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        acc[m][n][2 * r] *= factor;
        acc[m][n][2 * r + 1] *= factor;
      }
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          s[m][n][e] = exponential<T>(s[m][n][e], base);
          state.sum[m][r] += s[m][n][e];
        }
      }
    }
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ ForwardParameters<T> p) {
  using Shape = ForwardShape<T, kDim>;
  using Layout = ForwardLayout<T, kDim>;
  using KeyTile = typename Layout::KeyTile;
  constexpr int kBlocks = Shape::kBlocks;
  constexpr int kColumns = Shape::kColumns;
  extern __shared__ __align__(128) unsigned char memory[];
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  const typename Layout::QueryTile query{base};
  const auto keys = [&](int s) { return KeyTile{base + Layout::kKeys + s * KeyTile::kBytes}; };
  const auto values = [&](int s) { return KeyTile{base + Layout::kValues + s * KeyTile::kBytes}; };

  const PairSchedule& schedule = p.schedule;
  const RowBlock<Shape::kRows> mine(schedule.queries, p.heads);
  if (mine.rows <= 0) return;
  const int b = mine.batch;
  const int h = mine.head;
  const int g = h / p.group;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int first = 16 * kBlocks * warp;  // row of this warp within the block

  __shared__ SharedWalk<true, kColumns> walk;
  __shared__ SharedBits<Shape::kRows, kColumns> bits;
  if (threadIdx.x == 0) walk.begin(schedule, b, h, mine.tile);
  __syncthreads();
  const auto load = [&](const Piece& at, int stage) {
    load_tile<kThreads>(keys(stage), p.key.at(b, at.row, g), p.key.seq, at.rows, p.head_dim,
                        p.key.aligned);
    load_tile<kThreads>(values(stage), p.value.at(b, at.row, g), p.value.seq, at.rows, p.value_dim,
                        p.value.aligned);
  };
  load_tile<kThreads>(query, p.query.at(b, mine.row, h), p.query.seq, mine.rows, p.head_dim,
                      p.query.aligned);
  if (walk.pieces[0].rows > 0) load(walk.pieces[0], 0);
  commit_copies();

  RowState<kBlocks> state;
  Fragment<kBlocks, kDim> acc;
  const std::int64_t state_row =
      (static_cast<std::int64_t>(b) * p.heads + h) * schedule.queries.positions.size() + mine.row;
  const auto row_of = [&](int m, int r) { return first + 16 * m + lane / 4 + 8 * r; };
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = row_of(m, r);
      const bool carried = !p.first && row < mine.rows;
      state.max[m][r] = carried ? p.max[state_row + row] * p.max_unit : -kInfinity<float>;
      state.sum[m][r] = carried && lane % 4 == 0 ? p.sum[state_row + row] : 0.0F;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = 8 * n + 2 * (lane % 4) + e;
          acc[m][n][2 * r + e] = carried && column < p.value_dim
                                     ? p.acc[(state_row + row) * p.value_dim + column]
                                     : 0.0F;
        }
      }
    }
  }

  const Scoring scoring(p.scale, p.cap);
  for (int turn = 0; walk.pieces[turn % 4].rows > 0; ++turn) {
    const Piece& piece = walk.pieces[turn % 4];
    const Piece& next = walk.pieces[(turn + 1) % 4];
    const int stage = turn % Shape::kStages;
    if constexpr (Shape::kStages == 2) {
      if (next.rows > 0) load(next, stage ^ 1);
      commit_copies();
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    if (piece.masked) {
      find_bits<true, kThreads>(schedule, piece, b, h, mine.row, mine.rows, bits);
    }
    __syncthreads();
    if (threadIdx.x == 0 && next.rows > 0) walk.pieces[(turn + 2) % 4] = walk.next(schedule);

    Fragment<kBlocks, kColumns> s;
    Product<T>::template transposed<kBlocks>(s, query, first, keys(stage));
    scoring.apply<kBlocks, kColumns>(s);
    if (piece.masked || piece.rows < kColumns) {
      hide<kBlocks, kColumns>(s, piece, first, bits);
    }
    soften<T, kBlocks, kColumns, kDim>(s, state, acc);
    Product<T>::template times<kBlocks>(acc, s, values(stage),
                                        base + Layout::kScratch + warp * Layout::kWarpScratch);
    __syncthreads();
    if constexpr (Shape::kStages == 1) {
      if (next.rows > 0) load(next, 0);
      commit_copies();
    }
  }
  wait_copies<0>();

#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = row_of(m, r);
      float sum = state.sum[m][r];
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
      if (row >= mine.rows) continue;
      const std::int64_t at = state_row + row;
      const float max = state.max[m][r];
      RowResult<float> result{1.0F, 0.0F, false};
      if (p.last) {
        const float sink = p.sinks == nullptr ? -kInfinity<float> : static_cast<float>(p.sinks[h]);
        result = finish(max, sum, sink);
        if (p.lse != nullptr && lane % 4 == 0) {
          p.lse[b * p.lse_batch + h * p.lse_head + (mine.row + row) * p.lse_seq] = result.lse;
        }
      } else if (lane % 4 == 0) {
        p.max[at] = max / p.max_unit;
        p.sum[at] = sum;
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = 8 * n + 2 * (lane % 4) + e;
          if (column >= p.value_dim) continue;
          const float x = acc[m][n][2 * r + e];
          if (!p.last) {
            p.acc[at * p.value_dim + column] = x;
            continue;
          }
          const float y = result.zero ? 0.0F : x * result.factor;
          if (p.out.data != nullptr) {
            p.out.at(b, mine.row + row, h)[column] = from_float<T>(y);
          } else {
            p.out32.at(b, mine.row + row, h)[column] = y;
          }
        }
      }
    }
  }
}

template <class T, int kDim>
int forward_shared_bytes() {
  return ForwardLayout<T, kDim>::kBytes;
}

template <class T, int kDim>
cudaError_t launch_forward(const ForwardParameters<T>& p, cudaStream_t stream) {
  constexpr int kBytes = ForwardLayout<T, kDim>::kBytes;
  const auto kernel = forward_kernel<T, kDim>;
  const std::int64_t blocks =
      row_blocks<ForwardShape<T, kDim>::kRows>(p.schedule.queries) * p.heads * p.batch;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(blocks), kThreads, kBytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace ringattn::cuda::portable
