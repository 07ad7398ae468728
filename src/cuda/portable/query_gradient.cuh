// SPDX-License-Identifier: Apache-2.0
// The kernel of the backward that owns query rows and gathers dQ over the keys that they see.
#pragma once

#include "cuda/portable/parameters.h"
#include "cuda/portable/scores.cuh"
#include "cuda/portable/store.cuh"
#include "cuda/portable/walk.cuh"

namespace ringattn::cuda::portable {

template <class T, int kDim>
struct QueryGradientLayout {
  using Shape = QueryGradientShape<T, kDim>;
  using QueryTile = SharedTile<T, Shape::kRows, kDim>;
  using KeyTile = SharedTile<T, Shape::kColumns, kDim>;
  static constexpr int kDout = QueryTile::kBytes;
  static constexpr int kKeys = 2 * QueryTile::kBytes;
  static constexpr int kValues = kKeys + KeyTile::kBytes;
  static constexpr int kScratch = kValues + KeyTile::kBytes;
  static constexpr int kWarpScratch = 16 * Product<T>::template kScratchBytes<Shape::kColumns>;
  static constexpr int kBytes = kScratch + Shape::kThreads / 32 * kWarpScratch;
};

/// dp = dout value^T to dS, given the scores s.
template <class T, int kBlocks, int kColumns>
__device__ void differentiate(Fragment<kBlocks, kColumns>& dp, const Fragment<kBlocks, kColumns>& s,
                              const Scoring<T>& scoring, const float (&lse)[kBlocks][2],
                              const float (&delta)[kBlocks][2]) {
  const auto for_all = [&](const auto& f) {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m)
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) f(dp[m][n][e], s[m][n][e], lse[m][e / 2], delta[m][e / 2]);
  };
  if (scoring.cap == 0.0F) {
    for_all([&](float& x, float score, float base, float mean) {
      x = scoring.weight(score, base) * (x - mean);
    });
  } else {
    for_all([&](float& x, float score, float base, float mean) {
      x = scoring.weight(score, base) * scoring.slope(score) * (x - mean);
    });
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(QueryGradientShape<T, kDim>::kThreads,
                                  QueryGradientShape<T, kDim>::kResident)
    query_gradient_kernel(const __grid_constant__ BackwardParameters<T> p) {
  using Shape = QueryGradientShape<T, kDim>;
  using Layout = QueryGradientLayout<T, kDim>;
  using Block = RowBlock<Shape::kRows, true>;
  constexpr int kBlocks = Shape::kBlocks;
  constexpr int kColumns = Shape::kColumns;
  constexpr int kThreads = Shape::kThreads;
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ SharedWalk<true, kColumns> walk;
  __shared__ SharedBits<Shape::kRows, kColumns> bits[2];
  __shared__ Block mine;
  __shared__ const T* head_key;
  __shared__ const T* head_value;
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  const typename Layout::QueryTile query{base};
  const typename Layout::QueryTile dout{base + Layout::kDout};
  const typename Layout::KeyTile key{base + Layout::kKeys};
  const typename Layout::KeyTile value{base + Layout::kValues};
  if (threadIdx.x == 0) {
    mine = Block::mine(p.schedule.queries, p.heads);
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
                        p.value.aligned);
  };
  const auto find = [&](const Piece& at, int turn) {
    if (!at.masked) return;
    find_bits<true, kThreads>(thread_number(), p.schedule, at, mine.batch, mine.head, mine.row,
                              mine.rows, bits[turn % 2]);
  };

  load_tile<kThreads>(query, p.query.at(mine.batch, mine.row, mine.head), p.query.seq, mine.rows,
                      p.head_dim, p.query.aligned);
  load_tile<kThreads>(dout, p.dout.at(mine.batch, mine.row, mine.head), p.dout.seq, mine.rows,
                      p.value_dim, p.dout.aligned);
  const bool any = walk.pieces[0].rows > 0;
  if (any) load_values(walk.pieces[0]);
  commit_copies();
  Fragment<kBlocks, kDim> acc;
  float lse[kBlocks][2], delta[kBlocks][2];
  clear<kBlocks, kDim>(acc);
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane_row<kBlocks>(m, r);
      const bool own = row < mine.rows;
      lse[m][r] = own ? p.lse[state_row(p, mine, row)] : kInfinity<float>;
      delta[m][r] = own ? p.delta[state_row(p, mine, row)] : 0.0F;
      if (p.first || !own) continue;
      for_sums(p, p.query_sums, p.dquery_sum, p.head_dim, mine, row, acc[m], r,
               [](float& sum, float& x) { x = sum; });
    }
  }
  if (any) find(walk.pieces[0], 0);
  wait_copies<0>();
  __syncthreads();
  if (any) load_keys(walk.pieces[0]);
  commit_copies();

  // Values and keys have one place each, as in the forward.
  const Scoring<T> scoring(p.scale, p.cap);
  for (int turn = 0; walk.pieces[turn % 4].rows > 0; ++turn) {
    const Piece& piece = walk.pieces[turn % 4];
    const Piece& next = walk.pieces[(turn + 1) % 4];
    const bool more = next.rows > 0;
    const bool hidden = piece.masked || piece.rows < kColumns;
    Fragment<kBlocks, kColumns> s, dp;
    Product<T>::template transposed<kBlocks>(
        dp, WarpRows<T, Shape::kRows, kDim>{dout, warp_row<kBlocks>()}, value);
    wait_copies<0>();
    __syncthreads();
    if (more) load_values(next);
    commit_copies();
    if (threadIdx.x == 0 && more) walk.pieces[(turn + 2) % 4] = walk.next(p.schedule);

    Product<T>::template transposed<kBlocks>(
        s, WarpRows<T, Shape::kRows, kDim>{query, warp_row<kBlocks>()}, key);
    scoring.template apply<kBlocks, kColumns>(s);
    differentiate<T, kBlocks, kColumns>(dp, s, scoring, lse, delta);
    if (hidden) {
      hide<kBlocks, kColumns>(dp, piece, warp_row<kBlocks>(), bits[turn % 2], 0.0F);
    }
    if (piece.masked) {  // a key that is not finite has made dS NaN where it is seen
      __syncthreads();
      clear_non_finite<kThreads>(key);
      __syncthreads();
    }
    Product<T>::template times<kBlocks>(
        acc, dp, key, base + Layout::kScratch + thread_number() / 32 * Layout::kWarpScratch);
    if (more) find(next, turn + 1);
    wait_copies<0>();
    __syncthreads();
    if (more) load_keys(next);
    commit_copies();
  }

#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane_row<kBlocks>(m, r);
      if (row >= mine.rows) continue;
      if (!p.last) {
        for_sums(p, p.query_sums, p.dquery_sum, p.head_dim, mine, row, acc[m], r,
                 [](float& sum, float& x) { sum = x; });
        continue;
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        acc[m][n][2 * r] *= p.scale;
        acc[m][n][2 * r + 1] *= p.scale;
      }
      if (p.dquery.data != nullptr) {
        write_row(acc[m], r, p.dquery.at(mine.batch, mine.row + row, mine.head), p.head_dim);
      } else {
        write_row(acc[m], r, p.dquery32.at(mine.batch, mine.row + row, mine.head), p.head_dim);
      }
    }
  }
}

}  // namespace ringattn::cuda::portable
