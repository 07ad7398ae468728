// SPDX-License-Identifier: Apache-2.0
// One device, contiguous [B, S, heads, D] tensors in GPU memory, behind a C function that Python
// can call: for bench.py, which times ringattn and its peers in one process.
#include <cstdint>
#include <memory>

#include "gpu/guarded.h"
#include "ringattn/attention.h"

namespace {

using namespace ringattn;

struct Bench {
  Problem problem;
  std::unique_ptr<RingAttention> attention;
  void* segments = nullptr;  // [B, S] int32 for both sides, or null
};

template <class Args>
void set_segments(const Bench& b, Args& args) {
  if (b.segments == nullptr) return;
  const Problem& p = b.problem;
  args.q_segment_ids = tensor(b.segments, DType::kInt32, {p.batch, p.query_seq});
  args.kv_segment_ids = tensor(b.segments, DType::kInt32, {p.batch, p.key_seq});
}

}  // namespace

extern "C" {

const char* ringattn_bench_error() { return last_error.c_str(); }

/// dtype: 0 f32, 1 bf16, 2 f16. window: keys seen before the query, or -1. Null: see the error.
void* ringattn_bench_make(std::int64_t batch, std::int64_t sq, std::int64_t sk, std::int64_t heads,
                          std::int64_t kv_heads, std::int64_t dim, int dtype, int causal,
                          std::int64_t window, double cap, int deterministic, int segments) {
  std::unique_ptr<Bench> bench(new Bench);
  const int status = guarded([&] {
    bench->problem = {batch,        sq, sk, heads, kv_heads, dim, dim, static_cast<DType>(dtype),
                      Device::kCuda};
    Options options;
    if (causal != 0) options.mask = Mask::causal();
    if (window >= 0) options.mask = options.mask & Mask::window(window, std::nullopt);
    if (cap > 0) options.logits_soft_cap = static_cast<float>(cap);
    options.deterministic = deterministic != 0;
    options.segment_ids = segments != 0;
    bench->attention = std::make_unique<RingAttention>(bench->problem, options);
  });
  return status == 0 ? bench.release() : nullptr;
}

/// Ids of both sides for the calls that follow, Sq = Sk.
void ringattn_bench_segments(void* bench, void* ids) { static_cast<Bench*>(bench)->segments = ids; }

void ringattn_bench_destroy(void* bench) { delete static_cast<Bench*>(bench); }

int ringattn_bench_forward(void* bench, void* q, void* k, void* v, void* out, void* lse,
                           void* stream) {
  return guarded([&] {
    auto& b = *static_cast<Bench*>(bench);
    const Problem& p = b.problem;
    ForwardArgs args;
    args.query = tensor(q, p.dtype, {p.batch, p.query_seq, p.query_heads, p.head_dim});
    args.key = tensor(k, p.dtype, {p.batch, p.key_seq, p.kv_heads, p.head_dim});
    args.value = tensor(v, p.dtype, {p.batch, p.key_seq, p.kv_heads, p.head_dim});
    args.out = tensor(out, p.dtype, {p.batch, p.query_seq, p.query_heads, p.head_dim});
    args.lse = tensor(lse, DType::kFloat32, {p.batch, p.query_heads, p.query_seq});
    set_segments(b, args);
    b.attention->forward(args, {}, Stream{stream});
  });
}

int ringattn_bench_backward(void* bench, void* q, void* k, void* v, void* out, void* lse,
                            void* dout, void* dq, void* dk, void* dv, void* stream) {
  return guarded([&] {
    auto& b = *static_cast<Bench*>(bench);
    const Problem& p = b.problem;
    BackwardArgs args;
    args.query = tensor(q, p.dtype, {p.batch, p.query_seq, p.query_heads, p.head_dim});
    args.key = tensor(k, p.dtype, {p.batch, p.key_seq, p.kv_heads, p.head_dim});
    args.value = tensor(v, p.dtype, {p.batch, p.key_seq, p.kv_heads, p.head_dim});
    args.out = tensor(out, p.dtype, {p.batch, p.query_seq, p.query_heads, p.head_dim});
    args.lse = tensor(lse, DType::kFloat32, {p.batch, p.query_heads, p.query_seq});
    args.dout = tensor(dout, p.dtype, {p.batch, p.query_seq, p.query_heads, p.head_dim});
    args.dquery = tensor(dq, p.dtype, {p.batch, p.query_seq, p.query_heads, p.head_dim});
    args.dkey = tensor(dk, p.dtype, {p.batch, p.key_seq, p.kv_heads, p.head_dim});
    args.dvalue = tensor(dv, p.dtype, {p.batch, p.key_seq, p.kv_heads, p.head_dim});
    set_segments(b, args);
    b.attention->backward(args, {}, Stream{stream});
  });
}

}  // extern "C"
