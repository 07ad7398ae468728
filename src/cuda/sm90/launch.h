// SPDX-License-Identifier: Apache-2.0
// What both passes on Hopper need before a launch.
#pragma once

#include <algorithm>

#include "cuda/sm90/parameters.h"
#include "cuda/sm90/tensor_map.h"
#include "plan.h"

namespace ringattn::cuda::sm90 {

/// The kernels count rows in 32 bits, with room for sums of a few of them.
constexpr std::int64_t kMaxRows = std::int64_t{1} << 28;
constexpr std::int64_t kMaxHeads = 1 << 15;

/// Of the instances, the one that takes these heads: narrower ones are padded with zeros.
constexpr int kernel_dim(std::int64_t head_dim, std::int64_t value_dim) {
  const std::int64_t dim = std::max(head_dim, value_dim);
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

template <class T>
MappedTensor mapped(const Rows<const T>& rows, std::int64_t batch, std::int64_t seq,
                    std::int64_t heads, std::int64_t dim) {
  return {rows.data,  std::is_same_v<T, __nv_bfloat16> ? DType::kBFloat16 : DType::kFloat16,
          batch,      seq,
          heads,      dim,
          rows.batch, rows.seq,
          rows.head};
}
template <class T>
MappedTensor query_of(const Common<T>& p) {
  return mapped(p.query, p.batch, p.schedule.queries.positions.size(), p.heads, p.head_dim);
}
template <class T>
MappedTensor key_of(const Common<T>& p) {
  return mapped(p.key, p.batch, p.schedule.keys.positions.size(), p.heads / p.group, p.head_dim);
}
template <class T>
MappedTensor value_of(const Common<T>& p) {
  return mapped(p.value, p.batch, p.schedule.keys.positions.size(), p.heads / p.group, p.value_dim);
}

/// Are there few enough rows?
template <class T>
bool rows_fit(const Common<T>& p) {
  const std::int64_t queries = p.schedule.queries.positions.size();
  const std::int64_t keys = p.schedule.keys.positions.size();
  const std::int64_t tiles =
      std::max(ceil_div(queries, kGroupRows), ceil_div(keys, kGroupRows)) + 2;
  return queries < kMaxRows && keys < kMaxRows && tiles * p.heads * p.batch < kMaxRows;
}

/// The scale of products on their way to log2 units.
template <class P>
void set_scoring(P& p) {
  constexpr float kLog2e = 1.4426950408889634F;
  if (p.cap == 0.0F) {
    p.score_scale = p.scale * kLog2e;
  } else {
    p.score_scale = p.scale / p.cap;
    p.log2_cap = p.cap * kLog2e;
  }
}

/// Lists, if there are segment ids and more tiles of others than a warp asks about at once, which
/// of them the tiles of own rows see, and lets p know. `pass` as for traverse().
cudaError_t list_seen_tiles(const PairSchedule& schedule, Pass pass, int batch, TileSpan* scratch,
                            cudaStream_t stream, Traversal& p);

/// What blocks of `groups` warpgroups visit: of query rows for kForward, which dQ of wide heads
/// takes too, of key rows for kBackward. in_order: blocks wait for those that began before them.
Traversal traverse(const PairSchedule& schedule, int batch, int heads, int group,
                   std::int64_t row_bytes, Pass pass, int groups, bool in_order);
template <class T>
Traversal traverse(const Common<T>& p, Pass pass, int groups, bool in_order = false) {
  // What passes by: keys and values; or queries and their gradients, sums of floats among them.
  const std::int64_t bytes = pass == Pass::kForward
                                 ? (p.head_dim + p.value_dim) * 2
                                 : (p.head_dim + p.value_dim) * 2 + p.head_dim * 4;
  return traverse(p.schedule, p.batch, p.heads, p.group, bytes, pass, groups, in_order);
}

}  // namespace ringattn::cuda::sm90
