// SPDX-License-Identifier: Apache-2.0
#include "support/fma_peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <latch>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ringattn::support {
namespace {

// Two units with a latency of 4 or 5 cycles need 8 to 10 independent sums; 12 leave room, and fit
// in the 16 registers that AVX2 has.
constexpr int kChains = 12;
constexpr std::int64_t kSteps = 500'000;  // a millisecond or two

/// What a thread runs, and how many multiply-adds each instruction does.
struct Loop {
  float (*run)(float seed);
  int width;
};

#if defined(__x86_64__)
[[gnu::target("avx512f")]] float run_avx512(float seed) {
  __m512 sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = _mm512_set1_ps(seed * static_cast<float>(c));
  const __m512 factor = _mm512_set1_ps(0.999F);
  const __m512 term = _mm512_set1_ps(seed);
  for (std::int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_fmadd_ps(sums[c], factor, term);
  }
  for (int c = 1; c < kChains; ++c) sums[0] = _mm512_add_ps(sums[0], sums[c]);
  return _mm512_cvtss_f32(sums[0]);
}

[[gnu::target("avx512f,avx512bf16")]] float run_bf16(float seed) {
  __m512 sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = _mm512_set1_ps(seed * static_cast<float>(c));
  const __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.25F), _mm512_set1_ps(0.5F));
  const __m512bh term = _mm512_cvtne2ps_pbh(_mm512_set1_ps(seed), _mm512_set1_ps(seed));
  for (std::int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbf16_ps(sums[c], factor, term);
  }
  for (int c = 1; c < kChains; ++c) sums[0] = _mm512_add_ps(sums[0], sums[c]);
  return _mm512_cvtss_f32(sums[0]);
}

[[gnu::target("avx2,fma")]] float run_avx2(float seed) {
  __m256 sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = _mm256_set1_ps(seed * static_cast<float>(c));
  const __m256 factor = _mm256_set1_ps(0.999F);
  const __m256 term = _mm256_set1_ps(seed);
  for (std::int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = _mm256_fmadd_ps(sums[c], factor, term);
  }
  for (int c = 1; c < kChains; ++c) sums[0] = _mm256_add_ps(sums[0], sums[c]);
  return _mm256_cvtss_f32(sums[0]);
}
#endif

/// Four lanes: what every 64-bit machine has.
float run_portable(float seed) {
  typedef float Vector __attribute__((vector_size(16)));
  Vector sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = Vector{} + seed * static_cast<float>(c);
  const Vector factor = Vector{} + 0.999F;
  const Vector term = Vector{} + seed;
  for (std::int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * factor + term;
  }
  for (int c = 1; c < kChains; ++c) sums[0] += sums[c];
  return sums[0][0];
}

Loop loop_of([[maybe_unused]] const std::string& isa, [[maybe_unused]] DType dtype) {
#if defined(__x86_64__)
  if (isa == "avx512_bf16" && dtype == DType::kBFloat16 && __builtin_cpu_supports("avx512bf16")) {
    return {run_bf16, 32};
  }
  if (isa.starts_with("avx512") && __builtin_cpu_supports("avx512f")) return {run_avx512, 16};
  if (isa.starts_with("avx2") && __builtin_cpu_supports("avx2")) return {run_avx2, 8};
#endif
  return {run_portable, 4};
}

/// When one thread began and ended, by its own clock: whoever waits for it may wake up late.
struct Span {
  std::chrono::steady_clock::time_point begin, end;
  float result = 0.0F;
};

/// Seconds from the first thread's begin to the last one's end.
double timed(const Loop& loop, int threads) {
  std::latch ready(threads);
  std::vector<Span> spans(static_cast<std::size_t>(threads));
  {
    std::vector<std::jthread> pool;
    for (Span& span : spans) {
      pool.emplace_back([&ready, &loop, &span] {
        ready.arrive_and_wait();
        span.begin = std::chrono::steady_clock::now();
        span.result = loop.run(1.0F);
        span.end = std::chrono::steady_clock::now();
      });
    }
  }
  auto begin = spans.front().begin;
  auto end = spans.front().end;
  float sum = 0.0F;
  for (const Span& span : spans) {
    begin = std::min(begin, span.begin);
    end = std::max(end, span.end);
    sum += span.result;
  }
  volatile float used = sum;  // so that no compiler may leave the work out
  static_cast<void>(used);
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

double peak_sample(const std::string& isa, int threads, DType dtype) {
  const Loop loop = loop_of(isa, dtype);
  const double flops = 2.0 * static_cast<double>(kSteps) * kChains * loop.width * threads;
  return flops / timed(loop, threads) / 1e9;
}

}  // namespace ringattn::support
