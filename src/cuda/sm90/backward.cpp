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

template <class T>
BackwardParameters<T> complete(const cuda::BackwardParameters<T>& given, int dim) {
  BackwardParameters<T> p;
  static_cast<cuda::BackwardParameters<T>&>(p) = given;
  static_cast<Traversal&>(p) = traverse(given, Pass::kBackward, backward_shape(dim).groups);
  set_scoring(p);
  p.query_tiles = static_cast<int>(given.query_sums.count());
  p.first_run_tiles = static_cast<int>(given.query_sums.first_run_tiles());
  return p;
}

}  // namespace

bool takes_backward(const Problem& p, bool deterministic) {
  return !deterministic && takes(p) && kernel_dim(p.head_dim, p.value_dim) <= 128;
}

TileShape backward_tiles(const Problem& p) {
  return {backward_shape(kernel_dim(p.head_dim, p.value_dim)).queries, kGroupRows};
}

QueryTiles query_tiles(const Problem& p, const Positions& queries) {
  const int dim = kernel_dim(p.head_dim, p.value_dim);
  return {backward_shape(dim).queries, dim, {queries.runs[0].count, queries.runs[1].count}};
}

template <class T>
bool takes(const cuda::BackwardParameters<T>& p) {
  const BackwardShape shape = backward_shape(kernel_dim(p.head_dim, p.value_dim));
  // Padding may hold anything, and what is not finite times a weight of 0 is not 0: with segment
  // ids the kernels that look at every number are needed.
  return p.schedule.query_segments.ids == nullptr && p.schedule.queries.size == shape.queries &&
         p.schedule.keys.size == kGroupRows && rows_fit(p) && can_map(query_of(p)) &&
         can_map(key_of(p)) && can_map(value_of(p)) && can_map(dout_of(p, p.dout)) &&
         (p.dquery.data == nullptr || p.dquery.aligned);
}

template <class T>
cudaError_t prepare_backward(const cuda::BackwardParameters<T>& p, cudaStream_t stream) {
  return tile_statistics(
      {p.query_sums, static_cast<std::int64_t>(p.batch) * p.heads, p.lse, p.delta, p.statistics},
      stream);
}

template <class T>
cudaError_t backward(const cuda::BackwardParameters<T>& given, cudaStream_t stream) {
  const int dim = kernel_dim(given.head_dim, given.value_dim);
  const BackwardShape shape = backward_shape(dim);
  const BackwardParameters<T> p = complete(given, dim);
  const std::int64_t heads = static_cast<std::int64_t>(p.batch) * p.heads;
  cudaError_t error = cudaSuccess;
  if (p.first) {
    error = cudaMemsetAsync(p.dquery_sum, 0, heads * p.query_sums.floats() * sizeof(float), stream);
  }
  if (error == cudaSuccess && p.tiles > 0) {
    CUtensorMap query;
    CUtensorMap dout;
    CUtensorMap key;
    CUtensorMap value;
    error = map_tensor(query_of(p), shape.queries, query);
    if (error == cudaSuccess) error = map_tensor(dout_of(p, p.dout), shape.queries, dout);
    if (error == cudaSuccess) error = map_tensor(key_of(p), shape.groups * kGroupRows, key);
    if (error == cudaSuccess) error = map_tensor(value_of(p), shape.groups * kGroupRows, value);
    if (error == cudaSuccess && p.drawn) {
      error = cudaMemsetAsync(p.ticket, 0, sizeof(unsigned), stream);
    }
    if (error != cudaSuccess) return error;
    const auto run = [&]<int kDim>() {
      return p.cap == 0.0F ? launch_backward<T, kDim, false>(p, query, dout, key, value, stream)
                           : launch_backward<T, kDim, true>(p, query, dout, key, value, stream);
    };
    error = dim == 64 ? run.template operator()<64>() : run.template operator()<128>();
  }
  if (error != cudaSuccess || !p.last) return error;
  return finish_queries<T>(
      {p.query_sums, heads, p.heads, p.head_dim, p.dquery_sum, p.scale, p.dquery, p.dquery32},
      stream);
}

template bool takes<__nv_bfloat16>(const cuda::BackwardParameters<__nv_bfloat16>&);
template bool takes<__half>(const cuda::BackwardParameters<__half>&);
template cudaError_t prepare_backward<__nv_bfloat16>(const cuda::BackwardParameters<__nv_bfloat16>&,
                                                     cudaStream_t);
template cudaError_t prepare_backward<__half>(const cuda::BackwardParameters<__half>&,
                                              cudaStream_t);
template cudaError_t backward<__nv_bfloat16>(const cuda::BackwardParameters<__nv_bfloat16>&,
                                             cudaStream_t);
template cudaError_t backward<__half>(const cuda::BackwardParameters<__half>&, cudaStream_t);

}  // namespace ringattn::cuda::sm90
