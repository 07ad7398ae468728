// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/query_rows.h"

#include "cuda/sm90/rows.cuh"

namespace ringattn::cuda::sm90 {
namespace {

/// The first row of a tile, and how many it has.
struct TileRows {
  std::int64_t row, rows;
  __device__ TileRows(const QueryTiles& tiles, std::int64_t tile) {
    const std::int64_t late = tile - tiles.first_run_tiles();
    const std::int64_t in_run = (late < 0 ? tile : late) * tiles.rows;
    const std::int64_t left = tiles.counts[late < 0 ? 0 : 1] - in_run;
    row = (late < 0 ? 0 : tiles.counts[0]) + in_run;
    rows = left < tiles.rows ? left : tiles.rows;
  }
};

/// One warpgroup per 64 x 64 part of a tile, which lies as it held it in registers.
template <class T>
__global__ void __launch_bounds__(128) finish_kernel(const __grid_constant__ FinishQueries<T> p) {
  const int parts = p.tiles.rows * p.tiles.dim / QueryTiles::kPart;
  const std::int64_t tile = blockIdx.x / parts;
  const int part = static_cast<int>(blockIdx.x % parts);
  const int lane = threadIdx.x % 32;
  const int columns = p.tiles.dim / 64;
  const int row = part / columns * 64 + threadIdx.x / 32 * 16 + lane / 4;
  const int column = part % columns * 64;
  const float* from = p.sums + (tile * parts + part) * QueryTiles::kPart + threadIdx.x * 4;
  const bool there = p.added == nullptr || p.added[tile * parts + part] != 0;
  float acc[32];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float4 x = there ? *reinterpret_cast<const float4*>(from + i * 512) : float4{};
    acc[4 * i] = x.x;
    acc[4 * i + 1] = x.y;
    acc[4 * i + 2] = x.z;
    acc[4 * i + 3] = x.w;
  }
  const std::int64_t head = tile / p.tiles.count();
  const std::int64_t b = head / p.heads_per_batch;
  const std::int64_t h = head % p.heads_per_batch;
  const TileRows rows(p.tiles, tile % p.tiles.count());
  const int valid = static_cast<int>(rows.rows) - row;
  const int dim = p.head_dim - column;
  if (p.dquery.data != nullptr) {
    store_rows<T, 64>(p.dquery.at(b, rows.row + row, h) + column, p.dquery.seq, valid, dim,
                      [&](int i) { return p.scale * acc[i]; });
    return;
  }
  float* to = p.dquery32.at(b, rows.row + row, h) + column + 2 * (lane % 4);
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int c = i / 4 * 8 + i % 2;
    const int down = i % 4 / 2 * 8;
    if (valid > down && c + 2 * (lane % 4) < dim) to[down * p.dquery32.seq + c] = p.scale * acc[i];
  }
}

}  // namespace

template <class T>
cudaError_t finish_queries(const FinishQueries<T>& p, cudaStream_t stream) {
  const std::int64_t blocks = p.heads * p.tiles.parts();
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  finish_kernel<T><<<static_cast<unsigned>(blocks), 128, 0, stream>>>(p);
  return cudaGetLastError();
}

template cudaError_t finish_queries<__nv_bfloat16>(const FinishQueries<__nv_bfloat16>&,
                                                   cudaStream_t);
template cudaError_t finish_queries<__half>(const FinishQueries<__half>&, cudaStream_t);

}  // namespace ringattn::cuda::sm90
