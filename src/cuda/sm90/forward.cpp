// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/forward.h"

#include <algorithm>
#include <atomic>

#include "cuda/check.h"
#include "cuda/sm90/parameters.h"
#include "cuda/sm90/tensor_map.h"

namespace ringattn::cuda::sm90 {
namespace {

/// The kernels count rows in 32 bits, with room for sums of a few of them.
constexpr std::int64_t kMaxRows = std::int64_t{1} << 28;
constexpr std::int64_t kMaxHeads = 1 << 15;

/// Keys and values that stay in the 50 MB of L2 while the queries of their heads pass by.
constexpr std::int64_t kResidentBytes = std::int64_t{32} << 20;

int kernel_dim(int head_dim, int value_dim) {
  const int dim = std::max(head_dim, value_dim);
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
MappedTensor query_of(const cuda::ForwardParameters<T>& p) {
  return mapped(p.query, p.batch, p.schedule.queries.positions.size(), p.heads, p.head_dim);
}
template <class T>
MappedTensor key_of(const cuda::ForwardParameters<T>& p) {
  return mapped(p.key, p.batch, p.schedule.keys.positions.size(), p.heads / p.group, p.head_dim);
}
template <class T>
MappedTensor value_of(const cuda::ForwardParameters<T>& p) {
  return mapped(p.value, p.batch, p.schedule.keys.positions.size(), p.heads / p.group, p.value_dim);
}

int clamp_row(std::int64_t row) {
  return static_cast<int>(std::clamp<std::int64_t>(row, -2 * kMaxRows, 2 * kMaxRows));
}

/// How many heads' queries take turns: as many as find their keys and values in L2, and a divisor
/// of all.
template <class T>
int heads_per_turn(const cuda::ForwardParameters<T>& p) {
  const std::int64_t all = static_cast<std::int64_t>(p.batch) * p.heads;
  const std::int64_t bytes =
      p.schedule.keys.positions.size() * (p.head_dim + p.value_dim) * sizeof(T);
  std::int64_t n = std::clamp<std::int64_t>(kResidentBytes / bytes * p.group, 1, all);
  while (all % n != 0) --n;
  return static_cast<int>(n);
}

template <class T>
ForwardParameters<T> complete(const cuda::ForwardParameters<T>& given, int dim) {
  ForwardParameters<T> p;
  static_cast<cuda::ForwardParameters<T>&>(p) = given;
  const int rows = forward_shape(dim).groups * kGroupRows;
  const PairSchedule& s = p.schedule;
  const Positions& queries = s.queries.positions;
  const Positions& keys = s.keys.positions;
  p.banded = s.interval_only() && s.mask.chunk == 0 && queries.list == nullptr &&
             keys.list == nullptr && queries.stride == keys.stride;
  for (int i = 0; i < 2; ++i) {
    p.query_counts[i] = static_cast<int>(queries.runs[i].count);
    p.key_counts[i] = static_cast<int>(keys.runs[i].count);
    p.query_blocks[i] = static_cast<int>(ceil_div(p.query_counts[i], rows));
    for (int j = 0; p.banded && j < 2; ++j) {
      const Band b = band(s.mask, queries.runs[i], keys.runs[j], keys.stride);
      p.bands[i][j] = {clamp_row(b.begin), clamp_row(b.end)};
    }
  }
  p.late_first = s.mask.left == IntervalMask::kUnbounded && s.mask.chunk == 0 &&
                 s.mask.right != IntervalMask::kUnbounded;
  p.heads_per_turn = p.late_first ? heads_per_turn(p) : 1;
  p.drawn = !(p.banded && s.mask.full());
  p.tiles = (p.query_blocks[0] + p.query_blocks[1]) * p.heads * p.batch;
  if (p.cap == 0.0F) {
    p.score_scale = p.scale * 1.4426950408889634F;
  } else {
    p.score_scale = p.scale / p.cap;
    p.log2_cap = p.cap * 1.4426950408889634F;
  }
  return p;
}

}  // namespace

bool on_hopper() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  // Asked once per device: calls should cost the host little.
  static std::atomic<std::uint64_t> known{0};
  static std::atomic<std::uint64_t> hopper{0};
  const std::uint64_t bit = device < 64 ? std::uint64_t{1} << device : 0;
  if ((known & bit) != 0) return (hopper & bit) != 0;
  int major = 0;
  int minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "the device's compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
        "the device's compute capability");
  const bool yes = major == 9 && minor == 0;
  if (yes) hopper |= bit;
  known |= bit;
  return yes;
}

bool takes(const Problem& p) {
  return (p.dtype == DType::kBFloat16 || p.dtype == DType::kFloat16) && p.head_dim % 8 == 0 &&
         p.value_dim % 8 == 0 && p.head_dim <= 256 && p.value_dim <= 256 &&
         p.query_heads < kMaxHeads && p.batch < kMaxHeads && on_hopper();
}

TileShape forward_tiles(const Problem& p) {
  return {kGroupRows,
          forward_shape(kernel_dim(static_cast<int>(p.head_dim), static_cast<int>(p.value_dim)))
              .columns};
}

template <class T>
bool takes(const cuda::ForwardParameters<T>& p) {
  const std::int64_t queries = p.schedule.queries.positions.size();
  const std::int64_t tiles = ceil_div(queries, kGroupRows) + 2;
  // What is masked is -inf before it is scaled; a scale of 0 or below would make it something
  // else.
  return p.scale > 0.0F && p.schedule.queries.size == kGroupRows &&
         p.schedule.keys.size == forward_shape(kernel_dim(p.head_dim, p.value_dim)).columns &&
         queries < kMaxRows && p.schedule.keys.positions.size() > 0 &&
         p.schedule.keys.positions.size() < kMaxRows && tiles * p.heads * p.batch < kMaxRows &&
         can_map(query_of(p)) && can_map(key_of(p)) && can_map(value_of(p)) &&
         (!p.last || p.out.data == nullptr || p.out.aligned);
}

template <class T>
cudaError_t forward(const cuda::ForwardParameters<T>& given, cudaStream_t stream) {
  const int dim = kernel_dim(given.head_dim, given.value_dim);
  const ForwardShape shape = forward_shape(dim);
  const ForwardParameters<T> p = complete(given, dim);
  if (p.tiles == 0) return cudaSuccess;
  CUtensorMap query;
  CUtensorMap key;
  CUtensorMap value;
  cudaError_t error = map_tensor(query_of(p), shape.groups * kGroupRows, query);
  if (error == cudaSuccess) error = map_tensor(key_of(p), shape.columns, key);
  if (error == cudaSuccess) error = map_tensor(value_of(p), shape.columns, value);
  if (error == cudaSuccess && p.drawn) {
    error = cudaMemsetAsync(p.ticket, 0, sizeof(unsigned), stream);
  }
  if (error != cudaSuccess) return error;
  const auto run = [&]<int kDim>() {
    return p.cap == 0.0F ? launch<T, kDim, false>(p, query, key, value, stream)
                         : launch<T, kDim, true>(p, query, key, value, stream);
  };
  if (dim == 64) return run.template operator()<64>();
  if (dim == 128) return run.template operator()<128>();
  return run.template operator()<256>();
}

template bool takes<__nv_bfloat16>(const cuda::ForwardParameters<__nv_bfloat16>&);
template bool takes<__half>(const cuda::ForwardParameters<__half>&);
template cudaError_t forward<__nv_bfloat16>(const cuda::ForwardParameters<__nv_bfloat16>&,
                                            cudaStream_t);
template cudaError_t forward<__half>(const cuda::ForwardParameters<__half>&, cudaStream_t);

}  // namespace ringattn::cuda::sm90
