// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/backward.h"

#include "cuda/sm90/forward.h"
#include "cuda/sm90/launch.h"
#include "cuda/sm90/query_rows.h"

namespace ringattn::cuda::sm90 {
namespace {

template <class T>
MappedTensor dout_of(const Common<T>& p, const Rows<const T>& dout) {
  return mapped(dout, p.batch, p.schedule.queries.positions.size(), p.heads, p.value_dim);
}

/// Two sums, two tiles: so wide a head is too much for the registers of one kernel.
constexpr bool splits(int dim) { return dim > 128; }

template <class T>
BackwardParameters<T> complete(const cuda::BackwardParameters<T>& given, Pass own, int groups,
                               bool in_order = false) {
  BackwardParameters<T> p;
  static_cast<cuda::BackwardParameters<T>&>(p) = given;
  static_cast<Traversal&>(p) = traverse(given, own, groups, in_order);
  set_scoring(p);
  p.query_tiles = static_cast<int>(given.query_sums.count());
  p.first_run_tiles = static_cast<int>(given.query_sums.first_run_tiles());
  return p;
}

/// Boxes of so many rows.
struct Maps {
  CUtensorMap query, dout, key, value;
};
template <class T>
cudaError_t map_all(const cuda::BackwardParameters<T>& p, int query_rows, int key_rows,
                    Maps& maps) {
  cudaError_t error = map_tensor(query_of(p), query_rows, maps.query);
  if (error == cudaSuccess) error = map_tensor(dout_of(p, p.dout), query_rows, maps.dout);
  if (error == cudaSuccess) error = map_tensor(key_of(p), key_rows, maps.key);
  if (error == cudaSuccess) error = map_tensor(value_of(p), key_rows, maps.value);
  return error;
}

template <class T>
using Launch = cudaError_t (*)(const BackwardParameters<T>&, const CUtensorMap&, const CUtensorMap&,
                               const CUtensorMap&, const CUtensorMap&, cudaStream_t);

template <class T>
cudaError_t start(BackwardParameters<T>& p, Pass own, int query_rows, int key_rows,
                  Launch<T> uncapped, Launch<T> capped, cudaStream_t stream) {
  if (p.tiles == 0) return cudaSuccess;
  Maps maps;
  cudaError_t error = map_all(p, query_rows, key_rows, maps);
  if (error == cudaSuccess) {
    error = list_seen_tiles(p.schedule, own, p.batch, p.seen_tiles, stream, p);
  }
  if (error != cudaSuccess) return error;
  return (p.cap == 0.0F ? uncapped : capped)(p, maps.query, maps.dout, maps.key, maps.value,
                                             stream);
}

/// Does whoever is first to add to a part of dQ store instead? Later steps add to every part.
template <class T>
bool stores_first(const cuda::BackwardParameters<T>& p) {
  return p.first && p.last;
}

/// One kernel for all three gradients; dQ is added up in memory and rounded by another at the end.
template <class T, int kDim>
cudaError_t at_once(const cuda::BackwardParameters<T>& given, cudaStream_t stream) {
  constexpr BackwardShape kShape = backward_shape(kDim);
  BackwardParameters<T> p = complete(given, Pass::kBackward, kShape.groups, given.deterministic);
  p.stores_first = stores_first(given);
  const cudaError_t error =
      start<T>(p, Pass::kBackward, kShape.queries, kShape.groups * kGroupRows,
               launch_backward<T, kDim, false>, launch_backward<T, kDim, true>, stream);
  if (error != cudaSuccess || !given.last) return error;
  const std::int64_t heads = static_cast<std::int64_t>(given.batch) * given.heads;
  return finish_queries<T>(
      {given.query_sums, heads, given.heads, given.head_dim, given.dquery_sum,
       stores_first(given) ? given.added : nullptr, given.scale, given.dquery, given.dquery32},
      stream);
}

/// A kernel for dQ and one for dK and dV.
template <class T, int kDim>
cudaError_t in_two(const cuda::BackwardParameters<T>& given, cudaStream_t stream) {
  BackwardParameters<T> queries = complete(given, Pass::kForward, 2);
  const cudaError_t error =
      start<T>(queries, Pass::kForward, 2 * kGroupRows, kSplitTile,
               launch_query_gradient<T, kDim, false>, launch_query_gradient<T, kDim, true>, stream);
  if (error != cudaSuccess) return error;
  BackwardParameters<T> keys = complete(given, Pass::kBackward, 1);
  ++keys.ticket;
  return start<T>(keys, Pass::kBackward, kSplitTile, kGroupRows,
                  launch_key_gradient<T, kDim, false>, launch_key_gradient<T, kDim, true>, stream);
}

}  // namespace

bool adds_queries(const Problem& p) { return !splits(kernel_dim(p.head_dim, p.value_dim)); }

TileShape backward_tiles(const Problem& p) {
  return {backward_shape(kernel_dim(p.head_dim, p.value_dim)).queries, kGroupRows};
}

QueryTiles query_tiles(const Problem& p, const Positions& queries) {
  const int dim = kernel_dim(p.head_dim, p.value_dim);
  return {backward_shape(dim).queries, dim, {queries.runs[0].count, queries.runs[1].count}};
}

template <class T>
bool takes(const cuda::BackwardParameters<T>& p) {
  const int dim = kernel_dim(p.head_dim, p.value_dim);
  const BackwardShape shape = backward_shape(dim);
  const bool anything =
      p.schedule.queries.positions.size() > 0 && p.schedule.keys.positions.size() > 0;
  return anything && p.schedule.queries.size == shape.queries &&
         p.schedule.keys.size == kGroupRows && rows_fit(p) && can_map(query_of(p)) &&
         can_map(key_of(p)) && can_map(value_of(p)) && can_map(dout_of(p, p.dout)) &&
         (p.dquery.data == nullptr || p.dquery.aligned);
}

template <class T>
std::span<std::byte> wants_cleared(const cuda::BackwardParameters<T>& p) {
  const bool adds = !splits(kernel_dim(p.head_dim, p.value_dim));
  const bool sums = adds && p.first && !stores_first(p);
  const bool counts = adds && (p.deterministic || stores_first(p));
  void* begin = sums ? static_cast<void*>(p.dquery_sum) : p.ticket;
  const unsigned* end =
      counts ? p.added + static_cast<std::int64_t>(p.batch) * p.heads * p.query_sums.parts()
             : p.ticket + kBackwardTickets;
  auto* from = static_cast<std::byte*>(begin);
  return {from, reinterpret_cast<const std::byte*>(end)};
}

template <class T>
cudaError_t backward(const cuda::BackwardParameters<T>& p, cudaStream_t stream) {
  if (!p.first) {
    const std::span<std::byte> clear = wants_cleared(p);
    const cudaError_t error = cudaMemsetAsync(clear.data(), 0, clear.size(), stream);
    if (error != cudaSuccess) return error;
  }
  switch (kernel_dim(p.head_dim, p.value_dim)) {
    case 64: return at_once<T, 64>(p, stream);
    case 128: return at_once<T, 128>(p, stream);
    default: return in_two<T, 256>(p, stream);
  }
}

template bool takes<__nv_bfloat16>(const cuda::BackwardParameters<__nv_bfloat16>&);
template bool takes<__half>(const cuda::BackwardParameters<__half>&);
template std::span<std::byte> wants_cleared<__nv_bfloat16>(
    const cuda::BackwardParameters<__nv_bfloat16>&);
template std::span<std::byte> wants_cleared<__half>(const cuda::BackwardParameters<__half>&);
template cudaError_t backward<__nv_bfloat16>(const cuda::BackwardParameters<__nv_bfloat16>&,
                                             cudaStream_t);
template cudaError_t backward<__half>(const cuda::BackwardParameters<__half>&, cudaStream_t);

}  // namespace ringattn::cuda::sm90
