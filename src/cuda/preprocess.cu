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
  std::int64_t heads, seq, rows;
  float* lse;
  float* delta;
};

/// lse and delta of a row from dot(out, dout). `zero`: all of out is.
__device__ void finish_row(const RowsOfGradient& p, std::int64_t row, double sum, bool zero) {
  const std::int64_t i = row % p.seq;
  const std::int64_t h = row / p.seq % p.heads;
  const std::int64_t b = row / p.seq / p.heads;
  const float lse = static_cast<const float*>(p.lse_in.data)[offset(p.lse_in, b, h, i)];
  // A row that saw nothing has out 0 and does not look at dout, which may be anything there.
  if (zero && p.sinks != nullptr && static_cast<float>(p.sinks[h]) == lse) sum = 0.0;
  if (p.dlse.data != nullptr) {
    sum -= static_cast<const float*>(p.dlse.data)[offset(p.dlse, b, h, i)];
  }
  p.delta[row] = static_cast<float>(sum);
  p.lse[row] = backward_lse(lse);
}

/// One warp per row (b, h, i).
__global__ void row_kernel(RowsOfGradient p) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  const std::int64_t i = row % p.seq;
  const std::int64_t h = row / p.seq % p.heads;
  const std::int64_t b = row / p.seq / p.heads;
  double sum = 0.0;
  bool zero = true;
  for (std::int64_t d = lane; d < p.out.shape[3]; d += 32) {
    const double x = load(p.out.dtype, p.out.data, offset(p.out, b, i, h, d));
    zero = zero && x == 0.0;
    sum += x * load(p.dout.dtype, p.dout.data, offset(p.dout, b, i, h, d));
  }
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, other);
  zero = __all_sync(0xFFFFFFFFU, zero) != 0;
  if (lane == 0) finish_row(p, row, sum, zero);
}

/// The same for 16-bit rows that can be read 16 bytes at a time, kLanes threads each. Sums of
/// products of 16-bit numbers need no more than floats.
template <class T, int kLanes>
__global__ void fast_row_kernel(RowsOfGradient p) {
  const std::int64_t row =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const std::int64_t i = row % p.seq;
  const std::int64_t h = row / p.seq % p.heads;
  const std::int64_t b = row / p.seq / p.heads;
  float sum = 0.0F;
  int nonzero = 0;
  if (row < p.rows && lane * 8 < p.out.shape[3]) {
    const auto eight = [&](const ConstTensorView& t) {
      return __ldcs(reinterpret_cast<const uint4*>(static_cast<const T*>(t.data) +
                                                   offset(t, b, i, h, 0) + lane * 8));
    };
    const uint4 x = eight(p.out);
    const uint4 y = eight(p.dout);
    const T* a = reinterpret_cast<const T*>(&x);
    const T* c = reinterpret_cast<const T*>(&y);
#pragma unroll
    for (int n = 0; n < 8; ++n) sum = fmaf(static_cast<float>(a[n]), static_cast<float>(c[n]), sum);
    nonzero = ((x.x | x.y | x.z | x.w) & 0x7FFF7FFFU) != 0 ? 1 : 0;
  }
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) {
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, other);
    nonzero |= __shfl_xor_sync(0xFFFFFFFFU, nonzero, other);
  }
  if (row < p.rows && lane == 0) finish_row(p, row, sum, nonzero == 0);
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

template <class T>
void run_fast(const RowsOfGradient& p, cudaStream_t stream) {
  const std::int64_t dim = p.out.dim(3);
  const auto run = [&]<int kLanes>() {
    const std::int64_t blocks = ceil_div(p.rows, kThreads / kLanes);
    fast_row_kernel<T, kLanes><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
  };
  if (dim <= 64) {
    run.template operator()<8>();
  } else if (dim <= 128) {
    run.template operator()<16>();
  } else {
    run.template operator()<32>();
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

void preprocess(const BackwardStep& step, float* lse, float* delta) {
  const Problem& p = step.plan.problem();
  const std::int64_t seq = step.plan.query_rows(step.plan.rank()).size();
  const std::int64_t rows = p.batch * p.query_heads * seq;
  if (rows > 0) {
    const std::int64_t blocks = ceil_div(rows, kThreads / 32);
    if (blocks > INT32_MAX) {
      throw Error(ErrorCode::kUnsupported, "query: more than 2^34 rows x heads on one GPU");
    }
    const RowsOfGradient given{step.out,      step.dout, step.lse, step.dlse, step.sinks,
                               p.query_heads, seq,       rows,     lse,       delta};
    const cudaStream_t stream = native(step.stream);
    if (!fast(step.out, step.dout)) {
      row_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(given);
    } else if (step.out.dtype == DType::kBFloat16) {
      run_fast<__nv_bfloat16>(given, stream);
    } else {
      run_fast<__half>(given, stream);
    }
    check(cudaGetLastError(), "the kernel of rows");
  }
  if (step.sinks != nullptr) {
    sink_kernel<<<static_cast<unsigned>(p.query_heads), kThreads, 0, native(step.stream)>>>(
        step.sinks, lse, delta, p.batch, p.query_heads, seq, step.dsinks);
    check(cudaGetLastError(), "the kernel of sinks");
  }
}

}  // namespace ringattn::cuda
