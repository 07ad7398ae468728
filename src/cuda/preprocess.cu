// SPDX-License-Identifier: Apache-2.0
#include "cuda/preprocess.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/check.h"
#include "dtype.h"
#include "merge.h"

namespace ringattn::cuda {
namespace {

constexpr int kThreads = 256;

struct RowsOfGradient {
  ConstTensorView out, dout, lse_in, dlse;
  const double* sinks;  // [H] or null
  unsigned heads, seq;
  unsigned blocks;  // of threads, per head of a batch row
  RowStatistics to;
  unsigned first_run, first_run_tiles, head_tiles;  // of to.tiles
};

/// The kRows rows, from i on, of a group of kLanes threads. Whole heads to a block and 32 bits:
/// divisions of 64 would take longer than reading the rows.
template <int kLanes, int kRows>
struct RowGroup {
  static constexpr unsigned kPerBlock = kThreads / kLanes * kRows;
  unsigned head, b, h, i;

  __device__ explicit RowGroup(const RowsOfGradient& p) {
    head = blockIdx.x / p.blocks;
    b = head / p.heads;
    h = head - b * p.heads;
    i = (blockIdx.x - head * p.blocks) * kPerBlock + threadIdx.x / kLanes * kRows;
  }
};

/// A row's lse and delta among those of its tile; after the last row of a run also those of rows
/// that do not exist.
__device__ void store_by_tile(const RowsOfGradient& p, unsigned head, unsigned i, float lse,
                              float delta) {
  constexpr float kLog2e = 1.4426950408889634F;
  const auto rows = static_cast<unsigned>(p.to.tiles.rows);
  const bool late = i >= p.first_run;
  const unsigned in_run = late ? i - p.first_run : i;
  const unsigned tile = in_run / rows;
  float* to =
      p.to.by_tile +
      (std::int64_t{head} * p.head_tiles + (late ? p.first_run_tiles : 0) + tile) * 2 * rows;
  unsigned row = in_run - tile * rows;
  to[QueryTiles::column(row)] = lse * kLog2e;
  to[rows + QueryTiles::column(row)] = delta;
  if (i + 1 != p.first_run && i + 1 != p.seq) return;
  while (++row < rows) {
    to[QueryTiles::column(row)] = kInfinity<float>;
    to[rows + QueryTiles::column(row)] = 0.0F;
  }
}

/// By every thread of a launch.
__device__ void clear(const RowStatistics& to) {
  auto* chunks = reinterpret_cast<uint4*>(to.clear.data());
  const auto n = static_cast<std::int64_t>((to.clear.size() + sizeof(uint4) - 1) / sizeof(uint4));
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n;
       i += std::int64_t{gridDim.x} * kThreads) {
    chunks[i] = uint4{};
  }
}

template <class Group>
__device__ float lse_of(const RowsOfGradient& p, const Group& row, unsigned i) {
  return static_cast<const float*>(p.lse_in.data)[offset(p.lse_in, row.b, row.h, i)];
}

/// lse and delta of row i from its lse and dot(out, dout). `zero`: all of out is.
template <class Group>
__device__ void finish_row(const RowsOfGradient& p, const Group& row, unsigned i, float lse,
                           double sum, bool zero) {
  // A row that saw nothing has out 0 and does not look at dout, which may be anything there.
  if (zero && p.sinks != nullptr && static_cast<float>(p.sinks[row.h]) == lse) sum = 0.0;
  if (p.dlse.data != nullptr) {
    sum -= static_cast<const float*>(p.dlse.data)[offset(p.dlse, row.b, row.h, i)];
  }
  const auto delta = static_cast<float>(sum);
  const float base = backward_lse(lse);
  const std::int64_t at = std::int64_t{row.head} * p.seq + i;
  p.to.delta[at] = delta;
  p.to.lse[at] = base;
  if (p.to.tiles.rows > 0) store_by_tile(p, row.head, i, base, delta);
}

/// One warp per row.
__global__ void row_kernel(const __grid_constant__ RowsOfGradient p) {
  clear(p.to);
  const RowGroup<32, 1> row(p);
  const int lane = threadIdx.x % 32;
  if (row.i >= p.seq) return;
  double sum = 0.0;
  bool zero = true;
  for (std::int64_t d = lane; d < p.out.shape[3]; d += 32) {
    const double x = load(p.out.dtype, p.out.data, offset(p.out, row.b, row.i, row.h, d));
    zero = zero && x == 0.0;
    sum += x * load(p.dout.dtype, p.dout.data, offset(p.dout, row.b, row.i, row.h, d));
  }
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, other);
  zero = __all_sync(0xFFFFFFFFU, zero) != 0;
  if (lane == 0) finish_row(p, row, row.i, lse_of(p, row, row.i), sum, zero);
}

/// Rows of a group of threads in fast_row_kernel(): all that they read is on its way at once.
constexpr int kFastRows = 4;

/// The same for 16-bit rows that can be read 16 bytes at a time, kLanes threads each. Sums of
/// products of 16-bit numbers need no more than floats.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    fast_row_kernel(const __grid_constant__ RowsOfGradient p) {
  static_assert(kFastRows <= kLanes);
  const RowGroup<kLanes, kFastRows> row(p);
  const unsigned lane = threadIdx.x % kLanes;
  // A thread finishes one row, if any.
  const bool finishes = lane < kFastRows && row.i + lane < p.seq;
  const float lse = finishes ? lse_of(p, row, row.i + lane) : 0.0F;
  uint4 x[kFastRows]{};
  uint4 y[kFastRows]{};
  if (lane * 8 < p.out.shape[3]) {
    const auto read = [&](const ConstTensorView& t, uint4(&to)[kFastRows]) {
      const T* from = static_cast<const T*>(t.data) + offset(t, row.b, row.i, row.h, lane * 8);
#pragma unroll
      for (unsigned r = 0; r < kFastRows; ++r, from += t.stride(1)) {
        if (row.i + r < p.seq) to[r] = __ldcs(reinterpret_cast<const uint4*>(from));
      }
    };
    read(p.out, x);
    read(p.dout, y);
  }
  float sum = 0.0F;
  bool zero = true;
#pragma unroll
  for (unsigned r = 0; r < kFastRows; ++r) {
    const T* a = reinterpret_cast<const T*>(x + r);
    const T* c = reinterpret_cast<const T*>(y + r);
    float part = 0.0F;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      part = fmaf(static_cast<float>(a[n]), static_cast<float>(c[n]), part);
    }
    int nonzero = ((x[r].x | x[r].y | x[r].z | x[r].w) & 0x7FFF7FFFU) != 0 ? 1 : 0;
#pragma unroll
    for (int other = kLanes / 2; other > 0; other /= 2) {
      part += __shfl_xor_sync(0xFFFFFFFFU, part, other);
      nonzero |= __shfl_xor_sync(0xFFFFFFFFU, nonzero, other);
    }
    if (lane == r) {
      sum = part;
      zero = nonzero == 0;
    }
  }
  if (finishes) finish_row(p, row, row.i + lane, lse, sum, zero);
  clear(p.to);
}

/// May rows of both be read 16 bytes at a time?
bool fast(const ConstTensorView& a, const ConstTensorView& b) {
  const auto aligned = [](const ConstTensorView& t) {
    return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.stride(0) % 8 == 0 &&
           t.stride(1) % 8 == 0 && t.stride(2) % 8 == 0;
  };
  return a.dtype == b.dtype && (a.dtype == DType::kBFloat16 || a.dtype == DType::kFloat16) &&
         a.dim(3) % 8 == 0 && a.dim(3) <= 256 && aligned(a) && aligned(b);
}

/// A launch of kLanes threads per kRows rows.
template <int kLanes, int kRows>
void run(void (*kernel)(RowsOfGradient), RowsOfGradient p, std::int64_t all_heads,
         cudaStream_t stream) {
  const std::int64_t blocks = ceil_div(p.seq, RowGroup<kLanes, kRows>::kPerBlock);
  if (blocks * all_heads > INT32_MAX) {
    throw Error(ErrorCode::kUnsupported, "query: more than 2^34 rows x heads on one GPU");
  }
  p.blocks = static_cast<unsigned>(blocks);
  kernel<<<static_cast<unsigned>(blocks * all_heads), kThreads, 0, stream>>>(p);
}

template <class T>
void run_fast(const RowsOfGradient& p, std::int64_t all_heads, cudaStream_t stream) {
  const std::int64_t dim = p.out.dim(3);
  if (dim <= 64) {
    run<8, kFastRows>(fast_row_kernel<T, 8>, p, all_heads, stream);
  } else if (dim <= 128) {
    run<16, kFastRows>(fast_row_kernel<T, 16>, p, all_heads, stream);
  } else {
    run<32, kFastRows>(fast_row_kernel<T, 32>, p, all_heads, stream);
  }
}

/// One block per head, sums in an order that never changes.
__global__ void sink_kernel(const double* sinks, const float* lse, const float* delta,
                            std::int64_t batch, std::int64_t heads, std::int64_t seq,
                            double* dsinks) {
  __shared__ double parts[kThreads];
  const std::int64_t h = blockIdx.x;
  const double sink = sinks[h];
  double sum = 0.0;
  // An infinite sink takes no gradient; NaN does.
  if (sink != kInfinity<double> && sink != -kInfinity<double>) {
    for (std::int64_t n = threadIdx.x; n < batch * seq; n += kThreads) {
      const std::int64_t at = (n / seq * heads + h) * seq + n % seq;
      sum -= exp(sink - static_cast<double>(lse[at])) * static_cast<double>(delta[at]);
    }
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) dsinks[h] = parts[0];
}

}  // namespace

void preprocess(const BackwardStep& step, const RowStatistics& to) {
  const Problem& p = step.plan.problem();
  const std::int64_t seq = step.plan.query_rows(step.plan.rank()).size();
  const std::int64_t all_heads = p.batch * p.query_heads;
  if (seq * all_heads > 0) {
    if (seq > INT32_MAX) {
      throw Error(ErrorCode::kUnsupported, "query: more than 2^31 rows on one GPU");
    }
    const QueryTiles& tiles = to.tiles;
    const RowsOfGradient given{step.out,
                               step.dout,
                               step.lse,
                               step.dlse,
                               step.sinks,
                               static_cast<unsigned>(p.query_heads),
                               static_cast<unsigned>(seq),
                               0,
                               to,
                               static_cast<unsigned>(tiles.counts[0]),
                               tiles.rows == 0 ? 0 : static_cast<unsigned>(tiles.first_run_tiles()),
                               static_cast<unsigned>(tiles.count())};
    const cudaStream_t stream = native(step.stream);
    if (!fast(step.out, step.dout)) {
      run<32, 1>(row_kernel, given, all_heads, stream);
    } else if (step.out.dtype == DType::kBFloat16) {
      run_fast<__nv_bfloat16>(given, all_heads, stream);
    } else {
      run_fast<__half>(given, all_heads, stream);
    }
    check(cudaGetLastError(), "the kernel of rows");
  }
  if (step.sinks != nullptr) {
    sink_kernel<<<static_cast<unsigned>(p.query_heads), kThreads, 0, native(step.stream)>>>(
        step.sinks, to.lse, to.delta, p.batch, p.query_heads, seq, step.dsinks);
    check(cudaGetLastError(), "the kernel of sinks");
  }
}

}  // namespace ringattn::cuda
