// SPDX-License-Identifier: Apache-2.0
// One hop of a ring, forward, as the backend runs it: bench.py times one that carries state in and
// out beside the same work without state. The tensors are this rank's queries and one block.
#include <memory>
#include <string>

#include "backend.h"
#include "gpu/guarded.h"
#include "plan.h"

namespace ringattn {
namespace {

constexpr int kWorld = 3;  // the least that has a hop between the first and the last
constexpr int kRank = 1;

struct Hop {
  Hop(const Problem& problem, const Options& options)
      : plan(problem, options, kRank, kWorld, false),
        schedule(plan.pair_schedule(Pass::kForward, kRank, kRank)),
        workspace_bytes(plan.backend().workspace_bytes(plan, Pass::kForward)),
        workspace(plan.backend().memory().allocate(workspace_bytes)) {}
  Hop(const Hop&) = delete;
  Hop& operator=(const Hop&) = delete;
  ~Hop() { plan.backend().memory().free(workspace); }

  Plan plan;
  PairSchedule schedule;
  std::size_t workspace_bytes;
  std::byte* workspace;
};

}  // namespace

extern "C" {

/// Of a sequence of three shards of `rows` rows each, bfloat16; the block is this rank's own, so
/// that `causal` is its diagonal. Null: see the error.
void* ringattn_bench_make_hop(std::int64_t rows, std::int64_t heads, std::int64_t kv_heads,
                              std::int64_t dim, int causal) {
  std::unique_ptr<Hop> hop;
  const int status = guarded([&] {
    const std::int64_t seq = kWorld * rows;
    Options options;
    if (causal != 0) options.mask = Mask::causal();
    hop = std::make_unique<Hop>(
        Problem{1, seq, seq, heads, kv_heads, dim, dim, DType::kBFloat16, Device::kCuda}, options);
  });
  return status == 0 ? hop.release() : nullptr;
}

void ringattn_bench_destroy_hop(void* hop) { delete static_cast<Hop*>(hop); }

/// first: no state is read. last: none is written, but out and lse are.
int ringattn_bench_hop(void* hop, void* q, void* k, void* v, void* out, void* lse, int first,
                       int last, void* stream) {
  return guarded([&] {
    const auto& h = *static_cast<Hop*>(hop);
    const Problem& p = h.plan.problem();
    const std::int64_t rows = p.query_seq / kWorld;
    const TensorView query = tensor(q, p.dtype, {1, rows, p.query_heads, p.head_dim});
    const auto block = [&](void* data) {
      return tensor(data, p.dtype, {1, rows, p.kv_heads, p.head_dim});
    };
    const std::shared_ptr<Executor> executor = default_executor();
    const ForwardStep step{{h.plan,
                            h.schedule,
                            query,
                            block(k),
                            block(v),
                            nullptr,
                            first != 0,
                            last != 0,
                            {h.workspace, h.workspace_bytes},
                            *executor,
                            Stream{stream}},
                           tensor(out, p.dtype, {1, rows, p.query_heads, p.head_dim}),
                           tensor(lse, DType::kFloat32, {1, p.query_heads, rows}),
                           true};
    h.plan.backend().forward(step);
  });
}

}  // extern "C"

}  // namespace ringattn
