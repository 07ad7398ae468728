// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/forward.h"

#include "cuda/sm90/launch.h"
#include "cuda/sm90/tensor_map.h"

namespace ringattn::cuda::sm90 {
namespace {

template <class T>
ForwardParameters<T> complete(const cuda::ForwardParameters<T>& given, int dim) {
  ForwardParameters<T> p;
  static_cast<cuda::ForwardParameters<T>&>(p) = given;
  static_cast<Traversal&>(p) = traverse(given, Pass::kForward, forward_shape(dim).groups);
  set_scoring(p);
  return p;
}

}  // namespace

TileShape forward_tiles(const Problem& p) {
  return {kGroupRows,
          forward_shape(kernel_dim(static_cast<int>(p.head_dim), static_cast<int>(p.value_dim)))
              .columns};
}

QueryTiles acc_tiles(const Problem& p, const Positions& queries) {
  return {kGroupRows,
          kernel_dim(p.head_dim, p.value_dim),
          {queries.runs[0].count, queries.runs[1].count}};
}

template <class T>
bool takes(const cuda::ForwardParameters<T>& p) {
  // What is masked is -inf before it is scaled; a scale of 0 or below would make it something
  // else.
  return p.scale > 0.0F && p.schedule.queries.size == kGroupRows &&
         p.schedule.keys.size == forward_shape(kernel_dim(p.head_dim, p.value_dim)).columns &&
         rows_fit(p) && p.schedule.keys.positions.size() > 0 && can_map(query_of(p)) &&
         can_map(key_of(p)) && can_map(value_of(p)) &&
         (!p.last || p.out.data == nullptr || p.out.aligned);
}

template <class T>
cudaError_t forward(const cuda::ForwardParameters<T>& given, cudaStream_t stream) {
  const int dim = kernel_dim(given.head_dim, given.value_dim);
  const ForwardShape shape = forward_shape(dim);
  ForwardParameters<T> p = complete(given, dim);
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
  if (error == cudaSuccess) {
    error = list_seen_tiles(p.schedule, Pass::kForward, p.batch, p.seen_tiles, stream, p);
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
