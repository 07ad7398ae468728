// SPDX-License-Identifier: Apache-2.0
// The plan: every argument is honoured or refused by name, memory follows the written formula, and
// huge shapes plan without overflow.
#include "plan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "backend.h"
#include "io/host_tensor.h"
#include "ringattn/attention.h"
#include "workspace.h"

namespace ringattn {
namespace {

Problem problem_of(std::int64_t seq = 16) {
  Problem p;
  p.query_seq = p.key_seq = seq;
  p.query_heads = 4;
  p.kv_heads = 2;
  p.head_dim = 8;
  return p;
}

struct Refusal {
  std::function<void(Problem&, Options&)> change;
  ErrorCode code;
  std::string message;
};

TEST(Plan, RefusesEveryBadArgumentByName) {
  const float nan = std::nanf("");
  const auto invalid = ErrorCode::kInvalidArgument;
  const auto unsupported = ErrorCode::kUnsupported;
  const Refusal refusals[] = {
    {[](Problem& p, Options&) { p.batch = -1; }, invalid, "batch: expected >= 0, got -1"},
    {[](Problem& p, Options&) { p.query_seq = -3; }, invalid,
     "query length: expected >= 0, got -3"},
    {[](Problem& p, Options&) { p.key_seq = -3; }, invalid, "key length: expected >= 0, got -3"},
    {[](Problem& p, Options&) { p.query_heads = 0; }, invalid, "query heads: expected >= 1, got 0"},
    {[](Problem& p, Options&) { p.kv_heads = 0; }, invalid, "kv heads: expected >= 1, got 0"},
    {[](Problem& p, Options&) { p.kv_heads = 3; }, invalid,
     "query heads: expected a multiple of the kv heads (3), got 4"},
    {[](Problem& p, Options&) { p.head_dim = 0; }, invalid, "head_dim: expected >= 1, got 0"},
    {[](Problem& p, Options&) { p.value_dim = -1; }, invalid,
     "value head_dim: expected >= 1, got -1"},
    {[](Problem& p, Options&) { p.dtype = DType::kFloat64; }, unsupported,
     "query: dtype f64 is not supported; use f32, bf16 or f16"},
    {[](Problem& p, Options&) { p.dtype = DType::kInt32; }, invalid,
     "query: expected dtype f32, bf16 or f16, got i32"},
    {[](Problem& p, Options&) { p.query_seq = std::int64_t{1} << 58; }, invalid,
     "query: expected fewer than 2^60 elements, got more"},
    {[](Problem& p, Options&) { p.key_seq = INT64_MAX; }, invalid,
     "key: expected fewer than 2^60 elements, got more"},
    {[=](Problem&, Options& o) { o.softmax_scale = nan; }, invalid,
     "softmax_scale: expected a finite number, got nan"},
    {[](Problem&, Options& o) { o.softmax_scale = INFINITY; }, invalid,
     "softmax_scale: expected a finite number, got inf"},
    {[](Problem&, Options& o) { o.logits_soft_cap = 0.0F; }, invalid,
     "logits_soft_cap: expected a finite number > 0, got 0.000000"},
    {[=](Problem&, Options& o) { o.logits_soft_cap = nan; }, invalid,
     "logits_soft_cap: expected a finite number > 0, got nan"},
    {[](Problem&, Options& o) { o.forward_tiles.q_blocksize = -1; }, invalid,
     "fwd_params.q_blocksize: expected >= 0, got -1"},
    {[](Problem&, Options& o) { o.backward_tiles.kv_blocksize = -9; }, invalid,
     "bwd_params.kv_blocksize: expected >= 0, got -9"},
#if defined(RINGATTN_HAVE_CUDA)
    {[](Problem&, Options& o) { o.backend = "tpu"; }, invalid,
     "backend: expected auto, cuda, cpu, reference, got tpu"},
#else
    {[](Problem&, Options& o) { o.backend = "tpu"; }, invalid,
     "backend: expected auto, cpu, reference, got tpu"},
    {[](Problem&, Options& o) { o.backend = "cuda"; }, unsupported,
     "backend: cuda is not in this build; there are cpu, reference"},
#endif
    {[](Problem& p, Options& o) {
       p.head_dim = 600;
       o.backend = "cpu";
     },
     unsupported, "backend: none takes this problem: cpu: head_dim 600 is above 512; "},
    {[](Problem&, Options& o) { o.mask = Mask::dense(std::vector<std::uint8_t>(6), 1, 2, 3); },
     invalid, "mask: expected shape [4, 16, 16] or [1, 16, 16] (global lengths), got [1, 2, 3]"},
  };
  for (const Refusal& r : refusals) {
    Problem p = problem_of();
    Options o;
    r.change(p, o);
    try {
      const Plan plan(p, o, 0, 1, true);
      FAIL() << "accepted what must be refused: " << r.message;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), r.code) << error.what();
      EXPECT_EQ(error.what(), r.message);
    }
  }
}

TEST(Plan, RefusesRanksOutsideTheRing) {
  EXPECT_THROW(Plan(problem_of(), {}, 3, 3, true), Error);
  EXPECT_THROW(Plan(problem_of(), {}, 0, 0, true), Error);
}

TEST(Plan, HeadDimsBeyondTheCpuBackendFallToTheReference) {
  Problem p = problem_of();
  p.head_dim = 600;
  const Plan plan(p, {}, 0, 1, true);
  EXPECT_EQ(plan.backend().name(), "reference");
  EXPECT_NE(plan.backend_reason().find("600 is above 512"), std::string::npos);
}

TEST(Plan, ScaleDefaultsToTheInverseRootOfHeadDim) {
  EXPECT_FLOAT_EQ(Plan(problem_of(), {}, 0, 1, true).scale(), 1.0F / std::sqrt(8.0F));
  Options o;
  o.softmax_scale = -0.5F;
  EXPECT_EQ(Plan(problem_of(), o, 0, 1, true).scale(), -0.5F);
}

TEST(Plan, FourMillionTokensPlanWithoutOverflow) {
  Problem p = problem_of(std::int64_t{1} << 22);
  p.query_heads = 64;
  p.kv_heads = 8;
  p.head_dim = 128;
  Options o;
  o.mask = Mask::causal() & Mask::window(4096, 0);
  const Plan plan(p, o, 5, 8, true);
  const PassCounts counts = plan.counts(Pass::kForward, 5);
  // Away from the start every row sees 4097 keys.
  EXPECT_EQ(counts.pairs, 64 * (std::int64_t{1} << 19) * 4097);
  EXPECT_EQ(counts.flops, counts.pairs * 4 * 128);
  EXPECT_EQ(counts.hops, 1);
  EXPECT_GT(plan.workspace_bytes(Pass::kBackward), std::size_t{1} << 32);
}

/// docs/contract.md, "Memory", written out again independently.
std::size_t formula(const Plan& plan, Pass pass, int threads, bool share) {
  const Problem& p = plan.problem();
  const auto a64 = [](std::int64_t bytes) {
    return static_cast<std::size_t>((bytes + 63) / 64 * 64);
  };
  const auto a16 = [](std::int64_t n) { return (n + 15) / 16 * 16; };
  const auto odd = [](std::int64_t n) { return ((n + 15) / 16 | 1) * 16; };
  const bool ring = plan.world() > 1;
  const std::int64_t sq = plan.query_rows(plan.rank()).size();
  const std::int64_t sk = plan.key_rows(plan.rank()).size();
  const std::int64_t most = plan.max_key_rows();
  const std::int64_t w = size_of(p.dtype);
  const std::int64_t m = plan.tiles(pass).queries;
  const std::int64_t n = plan.tiles(pass).keys;
  const std::int64_t d = p.head_dim;
  const std::int64_t v = p.value_dim;
  const std::size_t record =
      static_cast<std::size_t>(std::max<std::int64_t>(32 + 32 * p.batch, 8 * p.query_heads));

  std::size_t bytes = 0;
  if (ring)
    bytes += a64(p.batch * sk * p.kv_heads * d * w) + a64(p.batch * sk * p.kv_heads * v * w);
  if (ring && !share) {
    const std::int64_t extra = p.batch * most * p.kv_heads * w;
    bytes += 2 * (a64(extra * d) + a64(extra * v));
  }
  bytes += (record * static_cast<std::size_t>(plan.world()) + 63) / 64 * 64;
  const auto sums = [&](std::int64_t rows) {
    return a64(p.batch * rows * p.kv_heads * d * 4) + a64(p.batch * rows * p.kv_heads * v * 4);
  };
  bytes += (pass == Pass::kForward ? 1 : 2) * a64(8 * p.query_heads);
  const std::int64_t heads = p.batch * p.query_heads;
  const auto t = static_cast<std::size_t>(threads);
  if (pass == Pass::kForward) {
    if (ring) bytes += a64(heads * sq * (a16(v) + 2) * 4);
    std::int64_t planes = p.batch * p.kv_heads;
    if (!ring || !share) {  // a thread's whole planes have one room
      const std::int64_t whole = planes / threads - 2;
      if (threads == 1) {
        planes = 1;
      } else if (whole > 0) {
        planes -= (whole - 1) * threads;
      }
    }
    const std::int64_t panels = planes * ((most + n - 1) / n);
    bytes += static_cast<std::size_t>(panels) * (a64(d * odd(n) * 4) + a64(odd(v) * n * 4) + 64);
    if (ring && share) bytes += a64(heads * ((sq + m - 1) / m) * m * odd(d) * 4);
    bytes += t * (4 * (a64(m * odd(d) * 4) + a64(m * a16(v) * 4) + 2 * a64(m * 4)) +
                  a64(m * odd(n) * 4) + a64(m * 4));
  } else {
    bytes += sums(sk);
    if (ring) bytes += 2 * sums(most);
    if (ring && !share) bytes += sums(most) + 2 * sums(sk);
    bytes += a64(heads * sq * (a16(d) + 2) * 4);
    bytes += a64(heads * ((sq + m - 1) / m + 1) * 4);
    const std::int64_t tiles = heads * ((sq + m - 1) / m);
    const std::int64_t rows = tiles * std::min(m, sq);
    bytes += a64(rows * odd(d) * 4) + a64(rows * odd(v) * 4) + 2 * a64(tiles);
    const std::int64_t panels = p.batch * p.kv_heads * ((most + n - 1) / n);
    const std::size_t panel = a64(d * odd(n) * 4) + a64(v * odd(n) * 4) + a64(n * odd(d) * 4) + 64;
    bytes += ring && share ? static_cast<std::size_t>(panels) * panel : t * panel;
    bytes += t * (a64(n * odd(d) * 4) + a64(n * odd(v) * 4) + 5 * a64(m * odd(n) * 4));
  }
  return bytes;
}

TEST(Plan, MemoryFollowsTheWrittenFormula) {
  for (const int threads : {1, 3}) {
    for (const int world : {1, 2, 5}) {
      for (const std::int64_t seq : {0, 3, 100, 1000}) {
        for (const std::int64_t batch : {2, 8}) {
          for (const bool share : {true, false}) {
            for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
              Problem p = problem_of(seq);
              p.batch = batch;
              p.head_dim = 20;
              p.value_dim = 33;
              Options o;
              o.executor = make_thread_pool(threads);
              const Plan plan(p, o, world - 1, world, share);
              EXPECT_EQ(plan.workspace_bytes(pass), formula(plan, pass, threads, share))
                  << "threads " << threads << " world " << world << " seq " << seq << " batch "
                  << batch << " share " << share << (pass == Pass::kForward ? " fwd" : " bwd");
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace ringattn
