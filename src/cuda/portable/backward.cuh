// SPDX-License-Identifier: Apache-2.0
// The backward pass for any GPU since sm_80, in two kernels without atomics, so that every bit is
// the same from run to run: one owns query rows and gathers dQ, the other owns key rows and gathers
// dK and dV over the query heads of its group (Dao et al. 2022, arXiv 2205.14135, algorithm 4).
#pragma once

#include "cuda/portable/parameters.h"
#include "cuda/portable/product.cuh"
#include "cuda/portable/scores.cuh"
#include "cuda/portable/tile.cuh"
#include "cuda/portable/walk.cuh"

namespace ringattn::cuda::portable {

template <class T, int kDim>
struct BackwardLayout {
  using Shape = BackwardShape<T, kDim>;
  using OwnTile = SharedTile<T, Shape::kRows, kDim>;       // of the side that the block owns
  using OtherTile = SharedTile<T, Shape::kColumns, kDim>;  // of the side that it walks
  static constexpr int kOwn2 = OwnTile::kBytes;
  static constexpr int kOther = kOwn2 + OwnTile::kBytes;
  static constexpr int kOther2 = kOther + Shape::kStages * OtherTile::kBytes;
  static constexpr int kScratch = kOther2 + Shape::kStages * OtherTile::kBytes;
  static constexpr int kWarpScratch = 16 * Product<T>::template kScratchBytes<Shape::kColumns>;
  static constexpr int kBytes = kScratch + kWarps * kWarpScratch;
};

/// s to weights P in place, and dp to dS, for one pair; hidden pairs have s = -inf.
template <class T>
__device__ void differentiate(float& s, float& dp, float lse, float delta, const Scoring& scoring) {
  const bool hidden = s == -kInfinity<float>;
  const float p = hidden ? 0.0F : exponential<T>(s, lse);
  dp = hidden ? 0.0F : p * (dp - delta) * scoring.slope(s);
  s = p;
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads)
    query_gradient_kernel(const __grid_constant__ BackwardParameters<T> p) {
  using Shape = BackwardShape<T, kDim>;
  using Layout = BackwardLayout<T, kDim>;
  using Other = typename Layout::OtherTile;
  constexpr int kColumns = Shape::kColumns;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ SharedWalk<true, kColumns> walk;
  __shared__ SharedBits<Shape::kRows, kColumns> bits;
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  const typename Layout::OwnTile query{base};
  const typename Layout::OwnTile dout{base + Layout::kOwn2};
  const auto keys = [&](int s) { return Other{base + Layout::kOther + s * Other::kBytes}; };
  const auto values = [&](int s) { return Other{base + Layout::kOther2 + s * Other::kBytes}; };

  const PairSchedule& schedule = p.schedule;
  const RowBlock<Shape::kRows> mine(schedule.queries, p.heads);
  if (mine.rows <= 0) return;
  const int b = mine.batch;
  const int h = mine.head;
  const int g = h / p.group;
  const int lane = threadIdx.x % 32;
  const int first = 16 * (threadIdx.x / 32);
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
  load_tile<kThreads>(dout, p.dout.at(b, mine.row, h), p.dout.seq, mine.rows, p.value_dim,
                      p.dout.aligned);
  if (walk.pieces[0].rows > 0) load(walk.pieces[0], 0);
  commit_copies();

  const std::int64_t state_row =
      (static_cast<std::int64_t>(b) * p.heads + h) * schedule.queries.positions.size() + mine.row;
  const auto sum_index = [&](int row, int column) {
    return p.query_sums.rows == 0 ? (state_row + row) * p.head_dim + column
                                  : p.query_sums.index(static_cast<std::int64_t>(b) * p.heads + h,
                                                       mine.row + row, column);
  };
  Fragment<1, kDim> acc;
  float lse[2], delta[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + lane / 4 + 8 * r;
    const bool own = row < mine.rows;
    lse[r] = own ? p.lse[state_row + row] : kInfinity<float>;
    delta[r] = own ? p.delta[state_row + row] : 0.0F;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = 8 * n + 2 * (lane % 4) + e;
        acc[0][n][2 * r + e] =
            !p.first && own && column < p.head_dim ? p.dquery_sum[sum_index(row, column)] : 0.0F;
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

    Fragment<1, kColumns> s, dp;
    Product<T>::template transposed<1>(s, query, first, keys(stage));
    scoring.apply<1, kColumns>(s);
    if (piece.masked || piece.rows < kColumns) hide<1, kColumns>(s, piece, first, bits);
    Product<T>::template transposed<1>(dp, dout, first, values(stage));
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        differentiate<T>(s[0][n][e], dp[0][n][e], lse[e / 2], delta[e / 2], scoring);
      }
    }
    if (piece.masked) {  // a key that is not finite has made dS NaN where it is seen
      __syncthreads();
      clear_non_finite<kThreads>(keys(stage));
      __syncthreads();
    }
    Product<T>::template times<1>(
        acc, dp, keys(stage), base + Layout::kScratch + threadIdx.x / 32 * Layout::kWarpScratch);
    __syncthreads();
    if constexpr (Shape::kStages == 1) {
      if (next.rows > 0) load(next, 0);
      commit_copies();
    }
  }
  wait_copies<0>();

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + lane / 4 + 8 * r;
    if (row >= mine.rows) continue;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = 8 * n + 2 * (lane % 4) + e;
        if (column >= p.head_dim) continue;
        const float x = acc[0][n][2 * r + e];
        if (!p.last) {
          p.dquery_sum[sum_index(row, column)] = x;
        } else if (p.dquery.data != nullptr) {
          p.dquery.at(b, mine.row + row, h)[column] = from_float<T>(p.scale * x);
        } else {
          p.dquery32.at(b, mine.row + row, h)[column] = p.scale * x;
        }
      }
    }
  }
}

/// Both gradients at once take too many registers for wide heads.
enum class Gather { kBoth, kKey, kValue };

/// Writes rows of a gradient, contiguous [B, Sk, G, dim].
template <int kDim>
__device__ void store_gradient(float* to, const Fragment<1, kDim>& acc, std::int64_t row_stride,
                               int first, int rows, int dim, float factor) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + lane / 4 + 8 * r;
    if (row >= rows) continue;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = 8 * n + 2 * (lane % 4) + e;
        if (column < dim) to[row * row_stride + column] = factor * acc[0][n][2 * r + e];
      }
    }
  }
}

template <class T, int kDim, Gather kGather>
__global__ void __launch_bounds__(kThreads)
    key_gradient_kernel(const __grid_constant__ BackwardParameters<T> p) {
  using Shape = BackwardShape<T, kDim>;
  using Layout = BackwardLayout<T, kDim>;
  using Other = typename Layout::OtherTile;
  constexpr int kColumns = Shape::kColumns;
  constexpr bool kKey = kGather != Gather::kValue;
  constexpr bool kValue = kGather != Gather::kKey;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ SharedWalk<false, kColumns> walk;
  __shared__ SharedBits<Shape::kRows, kColumns> bits;
  __shared__ float lse[Shape::kStages][kColumns];
  __shared__ float delta[Shape::kStages][kColumns];
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  const typename Layout::OwnTile key{base};
  const typename Layout::OwnTile value{base + Layout::kOwn2};
  const auto queries = [&](int s) { return Other{base + Layout::kOther + s * Other::kBytes}; };
  const auto douts = [&](int s) { return Other{base + Layout::kOther2 + s * Other::kBytes}; };

  const PairSchedule& schedule = p.schedule;
  const int kv_heads = p.heads / p.group;
  const RowBlock<Shape::kRows> mine(schedule.keys, kv_heads);
  if (mine.rows <= 0) return;
  const int b = mine.batch;
  const int g = mine.head;
  const int lane = threadIdx.x % 32;
  const int first = 16 * (threadIdx.x / 32);
  const std::uint32_t scratch = base + Layout::kScratch + threadIdx.x / 32 * Layout::kWarpScratch;
  load_tile<kThreads>(key, p.key.at(b, mine.row, g), p.key.seq, mine.rows, p.head_dim,
                      p.key.aligned);
  load_tile<kThreads>(value, p.value.at(b, mine.row, g), p.value.seq, mine.rows, p.value_dim,
                      p.value.aligned);

  Fragment<1, kKey ? kDim : 8> dkey;
  Fragment<1, kValue ? kDim : 8> dvalue;
  clear<1, kKey ? kDim : 8>(dkey);
  clear<1, kValue ? kDim : 8>(dvalue);
  const Scoring scoring(p.scale, p.cap);
  const std::int64_t query_rows = schedule.queries.positions.size();
  for (int h = g * p.group; h < (g + 1) * p.group; ++h) {
    if (threadIdx.x == 0) walk.begin(schedule, b, h, mine.tile);
    __syncthreads();
    const auto load = [&](const Piece& at, int stage) {
      load_tile<kThreads>(queries(stage), p.query.at(b, at.row, h), p.query.seq, at.rows,
                          p.head_dim, p.query.aligned);
      load_tile<kThreads>(douts(stage), p.dout.at(b, at.row, h), p.dout.seq, at.rows, p.value_dim,
                          p.dout.aligned);
      for (int c = threadIdx.x; c < kColumns; c += kThreads) {
        const std::int64_t at_row =
            (static_cast<std::int64_t>(b) * p.heads + h) * query_rows + at.row + c;
        lse[stage][c] = c < at.rows ? p.lse[at_row] : kInfinity<float>;
        delta[stage][c] = c < at.rows ? p.delta[at_row] : 0.0F;
      }
    };
    if (walk.pieces[0].rows > 0) load(walk.pieces[0], 0);
    commit_copies();
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
        find_bits<false, kThreads>(schedule, piece, b, h, mine.row, mine.rows, bits);
      }
      __syncthreads();
      if (threadIdx.x == 0 && next.rows > 0) walk.pieces[(turn + 2) % 4] = walk.next(schedule);

      Fragment<1, kColumns> s, dp;
      Product<T>::template transposed<1>(s, key, first, queries(stage));
      scoring.apply<1, kColumns>(s);
      if (piece.masked || piece.rows < kColumns) hide<1, kColumns>(s, piece, first, bits);
      if constexpr (kKey) {
        Product<T>::template transposed<1>(dp, value, first, douts(stage));
      } else {
        clear<1, kColumns>(dp);
      }
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = 8 * n + 2 * (lane % 4) + e % 2;
          differentiate<T>(s[0][n][e], dp[0][n][e], lse[stage][column], delta[stage][column],
                           scoring);
        }
      }
      if constexpr (kValue) {
        Product<T>::template times<1>(dvalue, s, douts(stage), scratch);
      }
      if constexpr (kKey) {
        if (piece.masked) {  // a query that is not finite has made dS NaN where it sees
          __syncthreads();
          clear_non_finite<kThreads>(queries(stage));
          __syncthreads();
        }
        Product<T>::template times<1>(dkey, dp, queries(stage), scratch);
      }
      __syncthreads();
      if constexpr (Shape::kStages == 1) {
        if (next.rows > 0) load(next, 0);
        commit_copies();
      }
    }
    wait_copies<0>();
    __syncthreads();
  }

  const std::int64_t row =
      (static_cast<std::int64_t>(b) * schedule.keys.positions.size() + mine.row) * kv_heads + g;
  if constexpr (kKey) {
    store_gradient<kDim>(p.dkey + row * p.head_dim, dkey,
                         static_cast<std::int64_t>(kv_heads) * p.head_dim, first, mine.rows,
                         p.head_dim, p.scale);
  }
  if constexpr (kValue) {
    store_gradient<kDim>(p.dvalue + row * p.value_dim, dvalue,
                         static_cast<std::int64_t>(kv_heads) * p.value_dim, first, mine.rows,
                         p.value_dim, 1.0F);
  }
}

template <class T, int kDim>
int backward_shared_bytes() {
  return BackwardLayout<T, kDim>::kBytes;
}

template <class Kernel, class Parameters>
cudaError_t launch(Kernel kernel, const Parameters& p, std::int64_t blocks, int bytes,
                   cudaStream_t stream) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(p);
  return cudaGetLastError();
}

template <class T, int kDim>
cudaError_t launch_backward(const BackwardParameters<T>& p, cudaStream_t stream) {
  constexpr int kRows = BackwardShape<T, kDim>::kRows;
  constexpr int kBytes = BackwardLayout<T, kDim>::kBytes;
  const std::int64_t queries = row_blocks<kRows>(p.schedule.queries) * p.heads * p.batch;
  const std::int64_t keys = row_blocks<kRows>(p.schedule.keys) * (p.heads / p.group) * p.batch;
  cudaError_t error = launch(query_gradient_kernel<T, kDim>, p, queries, kBytes, stream);
  if (error != cudaSuccess) return error;
  if constexpr (kDim <= 128) {
    return launch(key_gradient_kernel<T, kDim, Gather::kBoth>, p, keys, kBytes, stream);
  } else {
    error = launch(key_gradient_kernel<T, kDim, Gather::kKey>, p, keys, kBytes, stream);
    if (error != cudaSuccess) return error;
    return launch(key_gradient_kernel<T, kDim, Gather::kValue>, p, keys, kBytes, stream);
  }
}

}  // namespace ringattn::cuda::portable
