// SPDX-License-Identifier: Apache-2.0
// The forward pass for any GPU since sm_80 (FlashAttention-2, Dao 2023, arXiv 2307.08691,
// algorithm 1): a block of threads owns query rows, walks the key tiles that they see, and carries
// the softmax state from step to step.
#pragma once

#include "cuda/portable/parameters.h"
#include "cuda/portable/scores.cuh"
#include "cuda/portable/store.cuh"
#include "cuda/portable/walk.cuh"
#include "merge.h"

namespace ringattn::cuda::portable {

template <class T, int kDim>
struct ForwardLayout {
  using Shape = ForwardShape<T, kDim>;
  using QueryTile = SharedTile<T, Shape::kRows, kDim>;
  using KeyTile = SharedTile<T, Shape::kColumns, kDim>;
  static constexpr int kKeys = QueryTile::kBytes;
  static constexpr int kValues = kKeys + KeyTile::kBytes;
  static constexpr int kScratch = kValues + KeyTile::kBytes;
  static constexpr int kWarpScratch = 16 * Product<T>::template kScratchBytes<Shape::kColumns>;
  static constexpr int kBytes = kScratch + Shape::kThreads / 32 * kWarpScratch;
};

/// The softmax state of a warp's rows: of lane l, rows 16 m + l / 4 (+ 8).
template <int kBlocks>
struct RowState {
  float max[kBlocks][2];  // in log2 units
  float sum[kBlocks][2];  // of this lane's columns only
};

/// Scores to weights; rescales what was gathered before.
template <class T, int kBlocks, int kColumns, int kDim>
__device__ void soften(Fragment<kBlocks, kColumns>& s, const Scoring<T>& scoring,
                       RowState<kBlocks>& state, Fragment<kBlocks, kDim>& acc) {
  float tops[kBlocks][2];
  bool moved = false;
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = s[m][0][2 * r];
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        // Like fmaxf, this drops a NaN; it stays in s and makes the sum NaN.
        top = fmaxf(top, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
      }
      top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFU, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFU, top, 2));
      top = fmaxf(top * scoring.unit2(), state.max[m][r]);
      moved = moved || top != state.max[m][r];
      tops[m][r] = top;
    }
  }
  if (__any_sync(0xFFFFFFFFU, moved)) {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float factor = power_of_two(state.max[m][r] - reference(tops[m][r]));
        state.max[m][r] = tops[m][r];
        state.sum[m][r] *= factor;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          acc[m][n][2 * r] *= factor;
          acc[m][n][2 * r + 1] *= factor;
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float base = reference(state.max[m][r]);
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          s[m][n][e] = scoring.weight2(s[m][n][e], base);
          state.sum[m][r] += s[m][n][e];
        }
      }
    }
  }
}

/// The state at the beginning: nothing, or that of an earlier step.
template <class T, int kBlocks, int kDim, class Block>
__device__ void begin_rows(const ForwardParameters<T>& p, const Block& own,
                           RowState<kBlocks>& state, Fragment<kBlocks, kDim>& acc) {
  clear<kBlocks, kDim>(acc);
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane_row<kBlocks>(m, r);
      state.max[m][r] = -kInfinity<float>;
      state.sum[m][r] = 0.0F;
      if (p.first || row >= own.rows) continue;
      const std::int64_t at = state_row(p, own, row);
      state.max[m][r] = p.max[at];
      if (threadIdx.x % 4 == 0) state.sum[m][r] = p.sum[at];
      for_sums(p, p.acc_tiles, p.acc, p.value_dim, own, row, acc[m], r,
               [](float& sum, float& x) { x = sum; });
    }
  }
}

/// Results, or the state for the next step.
template <class T, int kBlocks, int kDim, class Block>
__device__ void finish_rows(const ForwardParameters<T>& p, const Block& own,
                            const RowState<kBlocks>& state, Fragment<kBlocks, kDim>& acc) {
  const int b = own.batch;
  const int h = own.head;
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = state.sum[m][r];
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
      const int row = lane_row<kBlocks>(m, r);
      if (row >= own.rows) continue;
      const float max = state.max[m][r] / kLog2e;
      if (!p.last) {
        const std::int64_t at = state_row(p, own, row);
        if (threadIdx.x % 4 == 0) {
          p.max[at] = state.max[m][r];
          p.sum[at] = sum;
        }
        for_sums(p, p.acc_tiles, p.acc, p.value_dim, own, row, acc[m], r,
                 [](float& sum, float& x) { sum = x; });
        continue;
      }
      const float sink = p.sinks == nullptr ? -kInfinity<float> : static_cast<float>(p.sinks[h]);
      const RowResult<float> result = finish(max, sum, sink);
      const std::int64_t i = own.row + row;
      if (p.lse != nullptr && threadIdx.x % 4 == 0) {
        p.lse[b * p.lse_batch + h * p.lse_head + i * p.lse_seq] = result.lse;
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          acc[m][n][e] = result.zero ? 0.0F : acc[m][n][e] * result.factor;
        }
      }
      if (p.out.data != nullptr) {
        write_row(acc[m], r, p.out.at(b, i, h), p.value_dim);
      } else {
        write_row(acc[m], r, p.out32.at(b, i, h), p.value_dim);
      }
    }
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(ForwardShape<T, kDim>::kThreads, ForwardShape<T, kDim>::kResident)
    forward_kernel(const __grid_constant__ ForwardParameters<T> p) {
  using Shape = ForwardShape<T, kDim>;
  using Layout = ForwardLayout<T, kDim>;
  constexpr int kBlocks = Shape::kBlocks;
  constexpr int kColumns = Shape::kColumns;
  constexpr int kThreads = Shape::kThreads;
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ SharedWalk<true, kColumns> walk;
  __shared__ SharedBits<Shape::kRows, kColumns> bits[2];
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  const typename Layout::QueryTile query{base};
  const typename Layout::KeyTile key{base + Layout::kKeys};
  const typename Layout::KeyTile value{base + Layout::kValues};

  __shared__ RowBlock<Shape::kRows, true> mine;
  __shared__ const T* head_key;
  __shared__ const T* head_value;
  if (threadIdx.x == 0) {
    mine = RowBlock<Shape::kRows, true>::mine(p.schedule.queries, p.heads);
    if (mine.rows > 0) walk.begin(p.schedule, mine.batch, mine.head, mine.tile);
    head_key = p.key.at(mine.batch, 0, mine.head / p.group);
    head_value = p.value.at(mine.batch, 0, mine.head / p.group);
  }
  __syncthreads();
  if (mine.rows <= 0) return;
  const auto load_keys = [&](const Piece& at) {
    load_tile<kThreads>(key, head_key + at.row * p.key.seq, p.key.seq, at.rows, p.head_dim,
                        p.key.aligned);
  };
  const auto load_values = [&](const Piece& at) {
    load_tile<kThreads>(value, head_value + at.row * p.value.seq, p.value.seq, at.rows, p.value_dim,
                        p.value.aligned, ids_with_padding<true>(p.schedule, at, mine.batch));
  };
  const auto find = [&](const Piece& at, int turn) {
    if (!at.masked) return;
    find_bits<true, kThreads>(thread_number(), p.schedule, at, mine.batch, mine.head, mine.row,
                              mine.rows, bits[turn % 2]);
  };

  load_tile<kThreads>(query, p.query.at(mine.batch, mine.row, mine.head), p.query.seq, mine.rows,
                      p.head_dim, p.query.aligned);
  const bool any = walk.pieces[0].rows > 0;
  if (any) load_keys(walk.pieces[0]);
  commit_copies();
  RowState<kBlocks> state;
  Fragment<kBlocks, kDim> acc;
  begin_rows<T, kBlocks, kDim>(p, mine, state, acc);
  if (any) find(walk.pieces[0], 0);
  wait_copies<0>();
  __syncthreads();
  if (any) load_values(walk.pieces[0]);
  commit_copies();

  // Keys and values have one place each: the next keys come while values are used, and the other
  // way round.
  const Scoring<T> scoring(p.scale, p.cap);
  for (int turn = 0; walk.pieces[turn % 4].rows > 0; ++turn) {
    const Piece& piece = walk.pieces[turn % 4];
    const Piece& next = walk.pieces[(turn + 1) % 4];
    const bool more = next.rows > 0;
    Fragment<kBlocks, kColumns> s;
    Product<T>::template transposed<kBlocks>(
        s, WarpRows<T, Shape::kRows, kDim>{query, warp_row<kBlocks>()}, key);
    wait_copies<0>();
    __syncthreads();
    if (more) load_keys(next);
    commit_copies();
    if (threadIdx.x == 0 && more) walk.pieces[(turn + 2) % 4] = walk.next(p.schedule);

    scoring.template apply<kBlocks, kColumns>(s);
    if (piece.masked || piece.rows < kColumns) {
      hide<kBlocks, kColumns>(s, piece, warp_row<kBlocks>(), bits[turn % 2], -kInfinity<float>);
    }
    soften<T, kBlocks, kColumns, kDim>(s, scoring, state, acc);
    Product<T>::template times<kBlocks>(
        acc, s, value, base + Layout::kScratch + thread_number() / 32 * Layout::kWarpScratch);
    if (more) find(next, turn + 1);
    wait_copies<0>();
    __syncthreads();
    if (more) load_values(next);
    commit_copies();
  }
  finish_rows<T, kBlocks, kDim>(p, mine, state, acc);
}

template <class T, int kDim>
int forward_shared_bytes() {
  return ForwardLayout<T, kDim>::kBytes;
}

template <class T, int kDim>
cudaError_t launch_forward(const ForwardParameters<T>& p, cudaStream_t stream) {
  using Shape = ForwardShape<T, kDim>;
  return launch(forward_kernel<T, kDim>, p,
                row_blocks<Shape::kRows>(p.schedule.queries) * p.heads * p.batch, Shape::kThreads,
                ForwardLayout<T, kDim>::kBytes, stream);
}

}  // namespace ringattn::cuda::portable
