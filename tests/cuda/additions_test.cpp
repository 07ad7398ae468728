// SPDX-License-Identifier: Apache-2.0
// Blocks of threads add to the same sums of dQ, in any order unless it is `deterministic`. What
// gets lost where two of them meet shows only with many blocks, and not in every run: so both modes
// are compared again and again, on cases too large for float64.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend.h"
#include "cuda/availability.h"
#include "cuda/check.h"
#include "dtype.h"
#include "ringattn/cuda.h"
#include "support/data.h"
#include "support/ring_rank.h"

namespace ringattn::support {
namespace {

class CudaAdditions : public OnAGpu<> {};

/// Both passes of a case on one GPU.
class OneRank {
 public:
  OneRank(const Case& c, const CaseData& data, bool deterministic)
      : problem_(make_problem(c)), ring_(make_cuda_local_ring(1)) {
    problem_.device = Device::kCuda;
    Options options = make_options(c, data);
    options.backend = "cuda";
    options.deterministic = deterministic;
    rank_.memory = &choose_backend(problem_, options).backend->memory();
    rank_.cut_inputs(data.inputs(), c.layout, 1, Guard::kNone);
    RingSettings settings;
    settings.backward = true;
    rank_.make_outputs(settings, problem_);
    rank_.attention = std::make_unique<RingAttention>(*ring_[0], problem_, options);
    forward_ = allocate(*rank_.memory, rank_.attention->forward_workspace_bytes());
    backward_ = allocate(*rank_.memory, rank_.attention->backward_workspace_bytes());
  }

  void forward() {
    rank_.attention->forward(rank_.forward_args(),
                             {forward_.get(), rank_.attention->forward_workspace_bytes()}, {});
  }
  void backward() {
    rank_.attention->backward(rank_.backward_args(),
                              {backward_.get(), rank_.attention->backward_workspace_bytes()}, {});
  }
  /// bfloat16, as it lies.
  std::vector<std::uint16_t> dquery() {
    cuda::check(cudaDeviceSynchronize(), "the backward pass");
    std::vector<std::uint16_t> result(static_cast<std::size_t>(
        problem_.batch * rank_.dquery.view().dim(1) * problem_.query_heads * problem_.head_dim));
    rank_.memory->download(std::as_writable_bytes(std::span(result)),
                           static_cast<std::byte*>(rank_.dquery.argument().data));
    return result;
  }

 private:
  Problem problem_;
  std::vector<std::unique_ptr<Communicator>> ring_;
  RingRank rank_;
  Allocation forward_, backward_;
};

double root_mean_square(const std::vector<std::uint16_t>& x) {
  double sum = 0.0;
  for (const std::uint16_t bits : x) sum += std::pow(bf16_to_float(bits), 2);
  return std::sqrt(sum / static_cast<double>(x.size()));
}

/// How many elements differ by more than sums of floats in another order, rounded once, can: by a
/// step of bfloat16, and where terms cancel by what up to 2^5 additions lose, 2^-24 each of partial
/// sums below 2^7 rms.
int lost(const std::vector<std::uint16_t>& a, const std::vector<std::uint16_t>& b, double rms) {
  int count = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = bf16_to_float(a[i]);
    const double y = bf16_to_float(b[i]);
    const double most = std::max(std::abs(x), std::abs(y)) * 0x1p-7 + rms * 0x1p-12;
    if (!(std::abs(x - y) <= most)) ++count;
  }
  return count;
}

TEST_F(CudaAdditions, LoseNothingWhereManyBlocksMeet) {
  constexpr int kRuns = 60;
  for (const char* text :
       {"b4_sq1024_h16_d128_bf16_causal_bwd", "sq4096_h16_d128_bf16_causal_w1023,0_bwd",
        "b4_sq1024_h16_d64_bf16_causal_bwd", "sq2048_h16x4_d128_bf16_bwd"}) {
    SCOPED_TRACE(text);
    const Case c = parse_case(text);
    const CaseData data = make_data(c);
    OneRank ordered(c, data, true);
    OneRank any(c, data, false);
    ordered.forward();
    ordered.backward();
    any.forward();
    const std::vector<std::uint16_t> expected = ordered.dquery();
    const double rms = root_mean_square(expected);
    ASSERT_GT(rms, 0.0);
    int runs = 0;
    int elements = 0;
    for (int run = 0; run < kRuns; ++run) {
      any.backward();
      const int n = lost(any.dquery(), expected, rms);
      runs += n > 0 ? 1 : 0;
      elements = std::max(elements, n);
    }
    EXPECT_EQ(runs, 0) << "of " << kRuns << " runs, with up to " << elements
                       << " elements that are not sums in another order";
  }
}

}  // namespace
}  // namespace ringattn::support
