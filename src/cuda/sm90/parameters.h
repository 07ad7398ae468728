// SPDX-License-Identifier: Apache-2.0
// What the kernels for Hopper (sm_90a) are launched with, and the table of their shapes.
#pragma once

#include <cuda.h>

#include "cuda/parameters.h"

namespace ringattn::cuda::sm90 {

/// Rows of one warpgroup: the query tiles of the schedule.
constexpr int kGroupRows = 64;

/// A block: one warpgroup that fetches, and kGroups that compute on kGroupRows query rows each,
/// kColumns keys a step. Why these: docs/performance.md, "Forward on Hopper".
struct ForwardShape {
  int groups, columns;
  int stages;        // of keys, and of values
  bool turns;        // the groups issue their products in turns
  bool two_weights;  // weights of a step are packed while those of the step before are in use
  int fetch_registers, compute_registers;
};
constexpr ForwardShape forward_shape(int dim) {
  if (dim == 64) return {3, 128, 2, true, false, 32, 160};
  if (dim == 128) return {2, 128, 2, true, true, 24, 240};
  return {2, 80, 2, false, true, 24, 240};
}

/// A band in the range of the kernels' 32-bit rows.
struct Band32 {
  int begin = 0, end = 0;
};

/// Which blocks of rows there are, and what they visit. Own rows are those that a block keeps
/// (queries forward, keys backward), the others pass by.
struct Traversal {
  bool banded = false;     // bands say it all, but for segment ids
  bool segmented = false;  // there are segment ids
  Band32 bands[2][2];      // [own run][other run]
  int own_counts[2];       // rows of the runs
  int other_counts[2];
  int own_tiles[2];  // the schedule's tiles of own rows: of the first run, of both
  int other_tiles[2];
  const TileSpan* seen = nullptr;  // per tile of own rows, by segment ids; null: not known
  int own_blocks[2];               // blocks of own rows per run
  int short_blocks[2];             // of those, from the first on, how many are a warpgroup short
  int own_heads = 1;               // heads of the own rows
  int tiles = 0;                   // blocks of own rows x heads x batch
  int heads_per_turn = 1;          // whose others stay in L2 together
  bool late_first = false;         // rows that see more come first
  bool drawn = false;     // blocks of rows are drawn by ticket: some take longer than others
  bool in_order = false;  // sums of others are added to in the order in which blocks begin
};

template <class T>
struct ForwardParameters : cuda::ForwardParameters<T>, Traversal {
  float score_scale = 1.0F;  // to log2 units; with a cap: to the argument of tanh
  float log2_cap = 0.0F;
};

/// Instantiated once per type, head_dim and cap in a file of its own. The maps are those of
/// tensor_map.h, with boxes of the shape's rows and columns.
template <class T, int kDim, bool kCap>
cudaError_t launch(const ForwardParameters<T>& parameters, const CUtensorMap& query,
                   const CUtensorMap& key, const CUtensorMap& value, cudaStream_t stream);

/// A block of the backward pass: one warpgroup that fetches, one that adds dQ, and kGroups that
/// compute on kGroupRows key rows each, kQueries queries a step.
struct BackwardShape {
  int groups, queries;
  int query_stages, dout_stages;
  int buffers;  // of gradients of scores
  // Does a group's turn at the products begin before it meets the other, and end after its scores?
  bool long_turns;
  int fetch_registers;
};
constexpr BackwardShape backward_shape(int dim) {
  if (dim == 64) return {2, 128, 2, 3, 2, true, 24};
  return {2, 64, 2, 3, 2, false, 24};
}
/// Heads above 128 take two kernels, with tiles of as many queries and keys: split_layout.cuh.
constexpr int kSplitTile = 64;
static_assert(backward_shape(256).queries == kSplitTile);

template <class T>
struct BackwardParameters : cuda::BackwardParameters<T>, Traversal {
  float score_scale = 1.0F;  // as in the forward
  float log2_cap = 0.0F;
  // Tiles of queries of a head, those of the first run before those of the second.
  int query_tiles = 0;
  int first_run_tiles = 0;
  // Who adds first to a part of dQ finds nothing there, and stores it. `added` then says what
  // happened to the part: in order how many have added, else one of PartState.
  bool stores_first = false;
};

/// Instantiated once per type, head_dim and cap in a file of its own.
template <class T, int kDim, bool kCap>
cudaError_t launch_backward(const BackwardParameters<T>& parameters, const CUtensorMap& query,
                            const CUtensorMap& dout, const CUtensorMap& key,
                            const CUtensorMap& value, cudaStream_t stream);

/// The same for wider heads: dQ; dK and dV.
template <class T, int kDim, bool kCap>
cudaError_t launch_query_gradient(const BackwardParameters<T>& parameters, const CUtensorMap& query,
                                  const CUtensorMap& dout, const CUtensorMap& key,
                                  const CUtensorMap& value, cudaStream_t stream);
template <class T, int kDim, bool kCap>
cudaError_t launch_key_gradient(const BackwardParameters<T>& parameters, const CUtensorMap& query,
                                const CUtensorMap& dout, const CUtensorMap& key,
                                const CUtensorMap& value, cudaStream_t stream);

}  // namespace ringattn::cuda::sm90
