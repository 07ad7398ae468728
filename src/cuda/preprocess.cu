// SPDX-License-Identifier: Apache-2.0
#include "cuda/preprocess.h"

#include "cuda/check.h"
#include "dtype.h"
#include "merge.h"

namespace ringattn::cuda {
namespace {

constexpr int kThreads = 256;

struct RowsOfGradient {
  ConstTensorView out, dout, lse_in, dlse;
  std::int64_t heads, seq, rows;
  float* lse;
  float* delta;
};

/// One warp per row (b, h, i).
__global__ void row_kernel(RowsOfGradient p) {
  const std::int64_t row =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  const std::int64_t i = row % p.seq;
  const std::int64_t h = row / p.seq % p.heads;
  const std::int64_t b = row / p.seq / p.heads;
  double sum = 0.0;
  for (std::int64_t d = lane; d < p.out.shape[3]; d += 32) {
    sum += load(p.out.dtype, p.out.data, offset(p.out, b, i, h, d)) *
           load(p.dout.dtype, p.dout.data, offset(p.dout, b, i, h, d));
  }
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, other);
  if (lane != 0) return;
  if (p.dlse.data != nullptr) {
    sum -= static_cast<const float*>(p.dlse.data)[offset(p.dlse, b, h, i)];
  }
  p.delta[row] = static_cast<float>(sum);
  p.lse[row] = backward_lse(static_cast<const float*>(p.lse_in.data)[offset(p.lse_in, b, h, i)]);
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
    row_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, native(step.stream)>>>(
        {step.out, step.dout, step.lse, step.dlse, p.query_heads, seq, rows, lse, delta});
    check(cudaGetLastError(), "the kernel of rows");
  }
  if (step.sinks != nullptr) {
    sink_kernel<<<static_cast<unsigned>(p.query_heads), kThreads, 0, native(step.stream)>>>(
        step.sinks, lse, delta, p.batch, p.query_heads, seq, step.dsinks);
    check(cudaGetLastError(), "the kernel of sinks");
  }
}

}  // namespace ringattn::cuda
