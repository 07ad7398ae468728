// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_backend.h"

#include <algorithm>

#include "cuda/check.h"
#include "cuda/device_memory.h"
#include "cuda/portable/parameters.h"
#include "cuda/preprocess.h"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/forward.h"
#include "ringattn/cuda.h"
#include "workspace.h"

namespace ringattn {
namespace cuda {
namespace {

constexpr std::int64_t kMaxHeadDim = 256;

/// Calls f with the type and head_dim of the kernels that take the problem.
template <class T, class F>
auto with_dim(const Problem& p, const F& f) {
  const std::int64_t dim = std::max(p.head_dim, p.value_dim);
  if (dim <= 64) return f.template operator()<T, 64>();
  if (dim <= 128) return f.template operator()<T, 128>();
  return f.template operator()<T, 256>();
}
template <class F>
auto with_kernels(const Problem& p, const F& f) {
  if (p.dtype == DType::kBFloat16) return with_dim<__nv_bfloat16>(p, f);
  if (p.dtype == DType::kFloat16) return with_dim<__half>(p, f);
  return with_dim<float>(p, f);
}

template <class T, class View>
Rows<T> rows(const View& view) {
  constexpr std::int64_t kChunk = 16 / static_cast<std::int64_t>(sizeof(T));
  Rows<T> r;
  r.data = static_cast<T*>(view.data);
  r.batch = view.stride(0);
  r.seq = view.stride(1);
  r.head = view.stride(2);
  r.aligned = reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 && r.batch % kChunk == 0 &&
              r.seq % kChunk == 0 && r.head % kChunk == 0 && view.dim(3) % kChunk == 0;
  return r;
}

/// `out` in the problem's dtype or in float32: one of the two is set.
template <class T>
void set_result(const TensorView& view, Rows<T>& own, Rows<float>& wide) {
  if (view.dtype == DType::kFloat32) {
    wide = rows<float>(view);
  } else {
    own = rows<T>(view);
  }
}

template <class T>
void set_common(const StepContext& step, Common<T>& c) {
  const Problem& p = step.plan.problem();
  c.schedule = step.schedule;
  c.query = rows<const T>(step.query);
  c.key = rows<const T>(step.key);
  c.value = rows<const T>(step.value);
  c.batch = static_cast<int>(p.batch);
  c.heads = static_cast<int>(p.query_heads);
  c.group = static_cast<int>(p.query_heads / p.kv_heads);
  c.head_dim = static_cast<int>(p.head_dim);
  c.value_dim = static_cast<int>(p.value_dim);
  c.scale = step.plan.scale();
  c.cap = step.plan.soft_cap();
  c.first = step.first;
  c.last = step.last;
}

/// Scratch of the kernels for Hopper: tiles that see each other by segment ids.
TileSpan* carve_seen_tiles(const Plan& plan, Pass pass, Carver& carver) {
  const bool wanted = plan.options().segment_ids && sm90::takes(plan.problem());
  return carver.take_array<TileSpan>(
      wanted ? plan.problem().batch * std::max(query_tiles(plan, pass), most_key_tiles(plan, pass))
             : 0);
}

std::int64_t state_rows(const Plan& plan) {
  const Problem& p = plan.problem();
  return p.batch * p.query_heads * plan.query_rows(plan.rank()).size();
}

/// The rows of this rank's queries, as the kernels have them.
Positions query_rows(const Plan& plan) {
  Positions rows = plan.query_rows(plan.rank());
  // Explicit ones are a list, whatever the layout's runs are.
  if (plan.options().explicit_positions) rows = {{{0, rows.size()}, {}}};
  return rows;
}

/// How the accumulators of this rank lie between steps.
QueryTiles acc_tiles(const Plan& plan) {
  if (!sm90::takes(plan.problem())) return {};
  return sm90::acc_tiles(plan.problem(), query_rows(plan));
}

struct ForwardPieces {
  float* acc;  // as acc_tiles() says, between steps
  float* max;  // [B, H, Sq]
  float* sum;
  unsigned* ticket;
  TileSpan* seen_tiles;
};
ForwardPieces carve_forward(const Plan& plan, Carver& carver) {
  const Problem& p = plan.problem();
  const std::int64_t n = plan.world() == 1 ? 0 : state_rows(plan);
  const QueryTiles tiles = acc_tiles(plan);
  ForwardPieces w{};
  w.acc = carver.take_array<float>(
      n == 0 || tiles.rows == 0 ? n * p.value_dim : p.batch * p.query_heads * tiles.floats());
  w.max = carver.take_array<float>(n);
  w.sum = carver.take_array<float>(n);
  w.ticket = carver.take_array<unsigned>(1);
  w.seen_tiles = carve_seen_tiles(plan, Pass::kForward, carver);
  return w;
}

/// How the sums of dQ lie between the steps of this rank.
QueryTiles query_sums(const Plan& plan) {
  if (!sm90::takes(plan.problem())) return {};
  return sm90::query_tiles(plan.problem(), query_rows(plan));
}

struct BackwardPieces {
  float* lse;         // [B, H, Sq]
  float* delta;       // [B, H, Sq]
  float* statistics;  // lse and delta by tiles, with those of query_sums()
  // Behind each other: sm90::wants_cleared.
  float* dquery_sum;  // as query_sums() says
  unsigned* tickets;
  unsigned* added;  // by parts of tiles
  TileSpan* seen_tiles;
};
BackwardPieces carve_backward(const Plan& plan, Carver& carver) {
  const Problem& p = plan.problem();
  const std::int64_t n = state_rows(plan);
  const QueryTiles tiles = query_sums(plan);
  const std::int64_t heads = p.batch * p.query_heads;
  BackwardPieces w{};
  w.lse = carver.take_array<float>(n);
  w.delta = carver.take_array<float>(n);
  w.statistics = carver.take_array<float>(heads * tiles.count() * tiles.rows * 2);
  const bool adds = tiles.rows > 0 && sm90::adds_queries(p);
  const bool sums = adds || plan.world() > 1;
  w.dquery_sum = carver.take_array<float>(!sums            ? 0
                                          : tiles.rows > 0 ? heads * tiles.floats()
                                                           : n * p.head_dim);
  w.tickets = carver.take_array<unsigned>(sm90::kBackwardTickets);
  w.added = carver.take_array<unsigned>(adds ? heads * tiles.parts() : 0);
  w.seen_tiles = carve_seen_tiles(plan, Pass::kBackward, carver);
  return w;
}

/// May a kernel write a gradient rounded, 16 bytes at a time? Then `out` is set.
template <class T>
bool may_round(const TensorView& view, Rows<T>& out) {
  if (!view.present() || view.dtype == DType::kFloat32) return false;
  const Rows<T> r = rows<T>(view);
  if (r.aligned) out = r;
  return r.aligned;
}

/// Sums that a kernel has written where rounded gradients were asked for.
void round_sums(const BackwardStep& step, const float* dkey, const float* dvalue) {
  if (step.dkey.present() && dkey != nullptr) store(dkey, step.dkey, step.stream);
  if (step.dvalue.present() && dvalue != nullptr) store(dvalue, step.dvalue, step.stream);
}

/// Shared memory that a block may ask for on the current device.
int shared_limit() {
  int device = 0;
  int bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "the device's shared memory");
  return bytes;
}

}  // namespace
}  // namespace cuda

const Memory& CudaBackend::memory() const { return cuda::device_memory(); }

std::optional<std::string> CudaBackend::why_absent() const {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return std::string("no usable GPU: ") + cudaGetErrorString(error);
  if (devices == 0) return "there is no NVIDIA GPU";
  int device = 0;
  int major = 0;
  cuda::check(cudaGetDevice(&device), "cudaGetDevice");
  cuda::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
              "the device's compute capability");
  if (major < 8) return "the GPU is older than compute capability 8.0";
  return std::nullopt;
}

std::optional<std::string> CudaBackend::why_not(const Problem& p, const Options&) const {
  if (p.device != Device::kCuda) return "it runs on GPU memory only";
  const std::int64_t dim = std::max(p.head_dim, p.value_dim);
  if (dim > cuda::kMaxHeadDim) {
    return "head_dim " + std::to_string(dim) + " is above " + std::to_string(cuda::kMaxHeadDim);
  }
  if (p.batch > INT32_MAX || p.query_heads > INT32_MAX) return "batch or heads are above 2^31";
  const int needed = cuda::with_kernels(p, []<class T, int kDim>() {
    return std::max(cuda::portable::forward_shared_bytes<T, kDim>(),
                    cuda::portable::backward_shared_bytes<T, kDim>());
  });
  constexpr int kStatic = 5120;  // of the kernels, at most
  if (needed + kStatic > cuda::shared_limit()) {
    return "head_dim " + std::to_string(dim) + " in " + ringattn::name(p.dtype) + " needs " +
           std::to_string(needed + kStatic) + " bytes of shared memory, the GPU has " +
           std::to_string(cuda::shared_limit());
  }
  return std::nullopt;
}

TileShape CudaBackend::tiles(const Problem& problem, const TileHint& hint, Pass pass) const {
  // The kernels for Hopper have one shape each, which no hint betters.
  if (pass == Pass::kForward && cuda::sm90::takes(problem)) {
    return cuda::sm90::forward_tiles(problem);
  }
  if (pass == Pass::kBackward && cuda::sm90::takes(problem)) {
    return cuda::sm90::backward_tiles(problem);
  }
  // What kernels skip by. They cut tiles in pieces of their own, so any size is possible.
  const auto clamp = [](std::int64_t asked) {
    return asked > 0 ? std::min<std::int64_t>(asked, 128) : 128;
  };
  return {clamp(hint.q_blocksize), clamp(hint.kv_blocksize)};
}

std::vector<std::string> CudaBackend::instruction_sets() const {
  if (why_absent()) return {};
  return {cuda_devices().front().architecture};
}

std::size_t CudaBackend::workspace_bytes(const Plan& plan, Pass pass) const {
  Carver measure;
  if (pass == Pass::kForward) {
    cuda::carve_forward(plan, measure);
  } else {
    cuda::carve_backward(plan, measure);
  }
  return measure.used();
}

PassCounts CudaBackend::forward(const ForwardStep& step) const {
  Carver carver(step.workspace);
  const cuda::ForwardPieces w = cuda::carve_forward(step.plan, carver);
  cuda::with_kernels(step.plan.problem(), [&]<class T, int kDim>() {
    cuda::ForwardParameters<T> p;
    cuda::set_common(step, p);
    p.sinks = step.sinks;
    cuda::set_result(step.out, p.out, p.out32);
    if (step.lse.present()) {
      p.lse = static_cast<float*>(step.lse.data);
      p.lse_batch = step.lse.stride(0);
      p.lse_head = step.lse.stride(1);
      p.lse_seq = step.lse.stride(2);
    }
    p.acc_tiles = cuda::acc_tiles(step.plan);
    p.acc = w.acc;
    p.max = w.max;
    p.sum = w.sum;
    p.ticket = w.ticket;
    p.seen_tiles = w.seen_tiles;
    if constexpr (sizeof(T) == 2) {
      if (cuda::sm90::takes(step.plan.problem())) {
        if (cuda::sm90::takes(p)) {
          cuda::check(cuda::sm90::forward(p, cuda::native(step.stream)),
                      "the forward kernel for Hopper");
          return;
        }
      }
    }
    cuda::check(cuda::portable::launch_forward<T, kDim>(p, cuda::native(step.stream)),
                "the forward kernel");
  });
  return {};
}

PassCounts CudaBackend::backward(const BackwardStep& step) const {
  Carver carver(step.workspace);
  const cuda::BackwardPieces w = cuda::carve_backward(step.plan, carver);
  cuda::with_kernels(step.plan.problem(), [&]<class T, int kDim>() {
    cuda::BackwardParameters<T> p;
    cuda::set_common(step, p);
    p.dout = cuda::rows<const T>(step.dout);
    p.lse = w.lse;
    p.delta = w.delta;
    p.dquery_sum = w.dquery_sum;
    p.query_sums = cuda::query_sums(step.plan);
    p.statistics = w.statistics;
    p.ticket = w.tickets;
    p.seen_tiles = w.seen_tiles;
    p.added = w.added;
    p.deterministic = step.plan.options().deterministic;
    cuda::set_result(step.dquery, p.dquery, p.dquery32);
    p.dkey = reinterpret_cast<float*>(step.dkey_sum);
    p.dvalue = reinterpret_cast<float*>(step.dvalue_sum);
    if (step.first) {
      std::span<std::byte> clear;
      if constexpr (sizeof(T) == 2) {
        if (p.query_sums.rows > 0) clear = cuda::sm90::wants_cleared(p);
      }
      cuda::preprocess(step, {w.lse, w.delta, p.query_sums, w.statistics, clear});
    }
    if constexpr (sizeof(T) == 2) {
      if (p.query_sums.rows > 0 && cuda::sm90::takes(p)) {
        if (cuda::may_round(step.dkey, p.dkey_out)) p.dkey = nullptr;
        if (cuda::may_round(step.dvalue, p.dvalue_out)) p.dvalue = nullptr;
        cuda::check(cuda::sm90::backward(p, cuda::native(step.stream)),
                    "the backward kernel for Hopper");
        cuda::round_sums(step, p.dkey, p.dvalue);
        return;
      }
    }
    cuda::check(cuda::portable::launch_backward<T, kDim>(p, cuda::native(step.stream)),
                "the backward kernels");
    cuda::round_sums(step, p.dkey, p.dvalue);
  });
  return {};
}

void CudaBackend::accumulate(std::byte* sum, const std::byte* part, std::int64_t n, Executor&,
                             Stream stream) const {
  cuda::accumulate(reinterpret_cast<float*>(sum), reinterpret_cast<const float*>(part), n, stream);
}

void CudaBackend::store(const std::byte* sum, TensorView out, Executor&, Stream stream) const {
  cuda::store(reinterpret_cast<const float*>(sum), out, stream);
}

}  // namespace ringattn
