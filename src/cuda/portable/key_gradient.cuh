// SPDX-License-Identifier: Apache-2.0
// The kernel of the backward that owns key rows and gathers dK and dV over the queries that see
// them, of every query head of the group. Scores are held transposed, keys by queries. Two warps
// share their keys: one finds the weights and gathers dV, the other takes the weights from it,
// finds dS and gathers dK. Where registers suffice, the first is half a
// step ahead, so that neither waits for the other.
#pragma once

#include "cuda/portable/parameters.h"
#include "cuda/portable/scores.cuh"
#include "cuda/portable/store.cuh"
#include "cuda/portable/walk.cuh"

namespace ringattn::cuda::portable {

template <class T, int kDim>
struct KeyGradientLayout {
  using Shape = KeyGradientShape<T, kDim>;
  using KeyTile = SharedTile<T, Shape::kRows, kDim - Shape::kHeld>;  // what registers do not hold
  using QueryTile = SharedTile<T, Shape::kColumns, kDim>;
  static constexpr int kValues = KeyTile::kBytes;
  static constexpr int kQueries = 2 * kValues;
  static constexpr int kDouts = kQueries + 2 * QueryTile::kBytes;
  static constexpr int kWeights = kDouts + 2 * QueryTile::kBytes;
  static constexpr int kStatistics = kWeights + Shape::kRows * Shape::kColumns * 4;
  static constexpr int kScratch = kStatistics + 2 * 2 * Shape::kColumns * 4;
  static constexpr int kWarpScratch = 16 * Product<T>::template kScratchBytes<Shape::kColumns>;
  static constexpr int kBytes = kScratch + Shape::kThreads / 32 * kWarpScratch;
};

/// Barriers of the one half of the warps or the other. Number 0 is that of __syncthreads, at which
/// all threads must be at the same place.
constexpr int kHalfOfWarps = 1;
constexpr int kOtherHalf = 2;
template <int kThreads>
__device__ void meet(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

/// A barrier in shared memory, for those who come to it from different places.
class Meeting {
 public:
  /// By one thread, before the block's first __syncthreads.
  __device__ void init(int threads) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address()), "r"(threads) : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(address()) : "memory");
  }
  /// For all to have come in the current round; of the first one the parity is 0.
  __device__ void wait(int parity) {
    unsigned all = 0;
    while (all == 0) {
      asm volatile(
          "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; "
          "selp.u32 %0, 1, 0, p; }"
          : "=r"(all)
          : "r"(address()), "r"(parity)
          : "memory");
    }
  }

 private:
  __device__ std::uint32_t address() const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(&barrier_));
  }
  std::uint64_t barrier_;
};

/// Where this lane's four numbers of tile (m, n) of a fragment lie: 16 bytes a lane at a time.
template <int kColumns>
__device__ int weight_offset(int m, int n) {
  return (m * (kColumns / 8) + n) * 512 + thread_number() % 32 * 16;
}
/// And the two of a row of numbers for its columns.
__device__ inline int column_offset(int n) { return (8 * n + thread_number() % 4 * 2) * 4; }

/// Scores s of queries whose lse lies at `lse` to weights, which dV wants, and to `weights` in
/// shared memory times the slope of the cap, which dS wants.
template <bool kCap, class T, int kBlocks, int kColumns>
__device__ void find_weights(Fragment<kBlocks, kColumns>& s, const Scoring<T>& scoring,
                             std::uint32_t lse, std::uint32_t weights) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
    const float2 base = load_shared2(lse + column_offset(n));
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      float shared[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float w = scoring.weight(s[m][n][e], e % 2 == 0 ? base.x : base.y);
        shared[e] = kCap ? w * scoring.slope(s[m][n][e]) : w;
        s[m][n][e] = w;
      }
      store_shared4(weights + weight_offset<kColumns>(m, n), shared);
    }
  }
}

/// dp = value dout^T to dS, given the weights.
template <int kBlocks, int kColumns>
__device__ void differentiate(Fragment<kBlocks, kColumns>& dp, std::uint32_t weights,
                              std::uint32_t delta) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
    const float2 mean = load_shared2(delta + column_offset(n));
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      const float4 w = load_shared4(weights + weight_offset<kColumns>(m, n));
      dp[m][n][0] = w.x * (dp[m][n][0] - mean.x);
      dp[m][n][1] = w.y * (dp[m][n][1] - mean.y);
      dp[m][n][2] = w.z * (dp[m][n][2] - mean.x);
      dp[m][n][3] = w.w * (dp[m][n][3] - mean.y);
    }
  }
}

/// Rows of this warp's pair of a tensor [B, Sk, G, dim], keys or values: the first kHeld columns in
/// registers, the others in shared memory.
template <class T, int kDim>
struct OwnRows {
  using Shape = KeyGradientShape<T, kDim>;
  using Tile = typename KeyGradientLayout<T, kDim>::KeyTile;
  static constexpr int kHeld = Shape::kHeld;
  HeldRows<T, Shape::kBlocks, kHeld> held;
  WarpRows<T, Shape::kRows, kDim - kHeld> rest;

  /// By half of the threads of a block.
  template <class Block>
  __device__ void read(const Rows<const T>& from, const Block& own, int first, int dim,
                       std::uint32_t at) {
    const T* rows = from.at(own.batch, own.row, own.head);
    rest = {{at}, first};
    if constexpr (kHeld > 0) {
      held.read(rows + first * from.seq, from.seq, own.rows - first, dim, from.aligned);
    }
    if constexpr (kHeld < kDim) {
      load_tile<Shape::kThreads / 2>(rest.tile, rows + kHeld, from.seq, own.rows, dim - kHeld,
                                     from.aligned);
    }
  }

  template <int kBlocks>
  __device__ void operands(std::uint32_t (&a)[kBlocks][4], int k) const {
    if (k < kHeld / 16) {
      held.operands(a, k);
    } else {
      rest.operands(a, k - kHeld / 16);
    }
  }
};

/// The left factor as the products of the type want it.
template <class T, int kDim>
__device__ const auto& left_factor(const OwnRows<T, kDim>& own) {
  if constexpr (sizeof(T) == 2) {
    return own;
  } else {
    return own.rest;
  }
}

/// dK or dV of the rows of this warp's pair, to contiguous [B, Sk, G, dim].
template <class T, int kBlocks, int kTiles, class Block>
__device__ void write_gradient(const BackwardParameters<T>& p, const Block& own,
                               float (&acc)[kBlocks][kTiles][4], float* to, int dim, float factor) {
  const int thread = thread_number() % (blockDim.x / 2);
  const std::int64_t heads = p.heads / p.group;
  const std::int64_t begin = own.batch * p.schedule.keys.positions.size() + own.row;
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = (thread / 32 * kBlocks + m) * 16 + thread % 32 / 4 + 8 * r;
      if (row >= own.rows) continue;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        acc[m][n][2 * r] *= factor;
        acc[m][n][2 * r + 1] *= factor;
      }
      const std::int64_t at = ((begin + row) * heads + own.head) * dim;
      write_row(acc[m], r, to + at, dim);
    }
  }
}

/// What the warps of a block share, beside tiles.
template <class T, int kDim>
struct KeyGradientShared {
  using Shape = KeyGradientShape<T, kDim>;
  SharedWalk<false, Shape::kColumns> walk;
  SharedBits<Shape::kRows, Shape::kColumns> bits[2];
  RowBlock<Shape::kRows, false> mine;
  const T* query;    // of the head
  const T* dout;     // of the head
  std::int64_t row;  // of the head's lse and delta
  Meeting all_warps;
  Meeting weights[Shape::kPairs];  // written by one warp of a pair, awaited by the other
};

/// What one half of the warps does: gathers dK (kKeys) or dV into acc.
template <bool kKeys, class T, int kDim>
__device__ void gather(const BackwardParameters<T>& p, KeyGradientShared<T, kDim>& shared,
                       std::uint32_t base,
                       Fragment<KeyGradientShape<T, kDim>::kBlocks, kDim>& acc) {
  using Shape = KeyGradientShape<T, kDim>;
  using Layout = KeyGradientLayout<T, kDim>;
  using Tile = typename Layout::QueryTile;
  constexpr int kBlocks = Shape::kBlocks;
  constexpr int kColumns = Shape::kColumns;
  constexpr int kThreads = Shape::kThreads;
  constexpr int kHalf = kThreads / 2;
  const auto queries = [&](int s) { return Tile{base + Layout::kQueries + s * Tile::kBytes}; };
  const auto douts = [&](int s) { return Tile{base + Layout::kDouts + s * Tile::kBytes}; };
  const auto lse = [&](int s) { return base + Layout::kStatistics + s * 2 * kColumns * 4; };
  const auto delta = [&](int s) { return lse(s) + kColumns * 4; };
  const auto& mine = shared.mine;
  const int pair = static_cast<int>(threadIdx.x) / 32 % Shape::kPairs;
  const int first = pair * 16 * kBlocks;
  const auto weights = [&] {
    return base + Layout::kWeights +
           thread_number() / 32 % Shape::kPairs * 16 * kBlocks * kColumns * 4;
  };
  const std::uint32_t scratch =
      base + Layout::kScratch + (pair + kKeys * Shape::kPairs) * Layout::kWarpScratch;

  // Each half loads what its first products want.
  OwnRows<T, kDim> own;
  if constexpr (kKeys) {
    own.read(p.value, mine, first, p.value_dim, base + Layout::kValues);
  } else {
    own.read(p.key, mine, first, p.head_dim, base);
  }
  const auto load = [&](const Piece& at, int stage) {
    if constexpr (kKeys) {
      load_tile<kHalf>(douts(stage), shared.dout + at.row * p.dout.seq, p.dout.seq, at.rows,
                       p.value_dim, p.dout.aligned,
                       ids_with_padding<false>(p.schedule, at, mine.batch));
    } else {
      load_tile<kHalf>(queries(stage), shared.query + at.row * p.query.seq, p.query.seq, at.rows,
                       p.head_dim, p.query.aligned);
    }
    const int c = thread_number() % kHalf;
    if (c >= kColumns) return;
    const float* from = (kKeys ? p.delta : p.lse) + shared.row + at.row;
    copy_number((kKeys ? delta(stage) : lse(stage)) + c * 4, from + (c < at.rows ? c : 0),
                c < at.rows);
  };
  // Rounds of a head, which all have an even number of them: the parity of the next one needs no
  // register.
  const auto meet_all = [&](int round) {
    shared.all_warps.arrive();
    shared.all_warps.wait(round % 2);
  };

  for (int h = mine.head * p.group; h < (mine.head + 1) * p.group; ++h) {
    // By the half that has the registers.
    const auto find = [&](const Piece& at, int turn) {
      if (!kKeys || !at.masked) return;
      find_bits<false, kHalf>(thread_number() % kHalf, p.schedule, at, mine.batch, h, mine.row,
                              mine.rows, shared.bits[turn % 2]);
    };
    const auto& pieces = shared.walk.pieces;
    if (threadIdx.x == 0) {
      shared.walk.begin(p.schedule, mine.batch, h, mine.tile);
      shared.query = p.query.at(mine.batch, 0, h);
      shared.dout = p.dout.at(mine.batch, 0, h);
      shared.row = (static_cast<std::int64_t>(mine.batch) * p.heads + h) *
                   p.schedule.queries.positions.size();
    }
    meet_all(0);
    if (pieces[0].rows > 0) {
      load(pieces[0], 0);
      find(pieces[0], 0);
    }
    commit_copies();
    Fragment<kBlocks, kColumns> s;  // or dP, dS
    if constexpr (!kKeys && Shape::kAhead) {
      wait_copies<0>();
      meet<kHalf>(kHalfOfWarps);
      Product<T>::template transposed<kBlocks>(s, left_factor(own), queries(0));
    }
    int turn = 0;
    for (; pieces[turn % 4].rows > 0; ++turn) {
      const Piece& piece = pieces[turn % 4];
      const Piece& next = pieces[(turn + 1) % 4];
      const int stage = turn % 2;
      const auto hide_pairs = [&] {
        if (!piece.masked && piece.rows == kColumns) return;
        const int row = thread_number() / 32 % Shape::kPairs * 16 * kBlocks;
        hide<kBlocks, kColumns>(s, piece, row, shared.bits[turn % 2], 0.0F);
      };
      wait_copies<0>();
      meet_all(turn + 1);
      const bool more = next.rows > 0;  // known since this meeting only
      if (more) load(next, stage ^ 1);
      commit_copies();
      if constexpr (kKeys) {
        if (threadIdx.x == kHalf && more) {
          shared.walk.pieces[(turn + 2) % 4] = shared.walk.next(p.schedule);
        }
        Product<T>::template transposed<kBlocks>(s, left_factor(own), douts(stage));
        shared.weights[thread_number() / 32 % Shape::kPairs].wait(turn % 2);
        differentiate<kBlocks, kColumns>(s, weights(), delta(stage));
        hide_pairs();
        if (piece.masked) {  // a query that is not finite has made dS NaN where it sees
          if constexpr (!Shape::kAhead) meet<kHalf>(kOtherHalf);  // no pair needs it for scores
          clear_non_finite<kHalf>(queries(stage));
          meet<kHalf>(kOtherHalf);
        }
        Product<T>::template times<kBlocks>(acc, s, queries(stage), scratch);
        if (more) find(next, turn + 1);
      } else {
        if constexpr (!Shape::kAhead) {
          Product<T>::template transposed<kBlocks>(s, left_factor(own), queries(stage));
        }
        const Scoring<T> scoring(read_anew(p.scale), read_anew(p.cap));
        scoring.template apply<kBlocks, kColumns>(s);
        if (scoring.cap == 0.0F) {
          find_weights<false, T, kBlocks, kColumns>(s, scoring, lse(stage), weights());
        } else {
          find_weights<true, T, kBlocks, kColumns>(s, scoring, lse(stage), weights());
        }
        shared.weights[thread_number() / 32 % Shape::kPairs].arrive();
        hide_pairs();
        Product<T>::template times<kBlocks>(acc, s, douts(stage), scratch);
        if constexpr (Shape::kAhead) {  // those who wait for the next weights have them soon
          wait_copies<0>();
          meet<kHalf>(kHalfOfWarps);
          if (more) {
            Product<T>::template transposed<kBlocks>(s, left_factor(own), queries(stage ^ 1));
          }
        }
      }
    }
    meet_all(turn + 1);
    if (turn % 2 != 0) {
      meet_all(turn);
      if constexpr (kKeys) {
        shared.weights[thread_number() / 32 % Shape::kPairs].wait(1);
      } else {
        shared.weights[thread_number() / 32 % Shape::kPairs].arrive();
      }
    }
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(KeyGradientShape<T, kDim>::kThreads, 1)
    key_gradient_kernel(const __grid_constant__ BackwardParameters<T> p) {
  using Shape = KeyGradientShape<T, kDim>;
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ KeyGradientShared<T, kDim> shared;
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  if (threadIdx.x == 0) {
    shared.mine = RowBlock<Shape::kRows, false>::mine(p.schedule.keys, p.heads / p.group);
    shared.all_warps.init(Shape::kThreads);
    for (Meeting& written : shared.weights) written.init(32);
  }
  __syncthreads();
  if (shared.mine.rows <= 0) return;
  Fragment<Shape::kBlocks, kDim> acc;
  clear<Shape::kBlocks, kDim>(acc);
  if (threadIdx.x < Shape::kThreads / 2) {
    gather<false, T, kDim>(p, shared, base, acc);
    write_gradient(p, shared.mine, acc, p.dvalue, p.value_dim, 1.0F);
  } else {
    gather<true, T, kDim>(p, shared, base, acc);
    write_gradient(p, shared.mine, acc, p.dkey, p.head_dim, p.scale);
  }
}

}  // namespace ringattn::cuda::portable
