// SPDX-License-Identifier: Apache-2.0
#include "reference/reference.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "counts.h"
#include "dtype.h"
#include "merge.h"

namespace ringattn {
namespace {

double dot(const ConstTensorView& a, std::int64_t at, const ConstTensorView& b, std::int64_t bt,
           std::int64_t n) {
  double sum = 0.0;
  for (std::int64_t d = 0; d < n; ++d)
    sum += load(a.dtype, a.data, at + d) * load(b.dtype, b.data, bt + d);
  return sum;
}

/// A score and the slope of the soft cap there.
struct Score {
  double value;
  double slope;
};

Score score(const StepContext& step, std::int64_t q_at, std::int64_t k_at) {
  const double x = static_cast<double>(step.plan.scale()) *
                   dot(step.query, q_at, step.key, k_at, step.plan.problem().head_dim);
  const double cap = step.plan.soft_cap();
  if (cap == 0.0) return {x, 1.0};
  const double t = std::tanh(x / cap);
  return {cap * t, 1.0 - t * t};
}

/// The rows that one pass keeps between steps: doubles per (b, h, i).
struct RowState {
  double* acc;  // [rows, width]
  double* max;  // [rows]
  double* sum;  // [rows]
};

RowState carve(const StepContext& step, std::int64_t rows, std::int64_t width) {
  auto* base = reinterpret_cast<double*>(step.state.data());
  return {base, base + rows * width, base + rows * width + rows};
}

std::int64_t query_rows(const StepContext& step) {
  const Problem& p = step.plan.problem();
  return p.batch * p.query_heads * step.query.dim(1);
}

/// Calls f(b, h, i, row) for every query row; rows are split over the executor's threads.
template <class F>
void for_rows(const StepContext& step, const F& f) {
  const Problem& p = step.plan.problem();
  const std::int64_t seq = step.query.dim(1);
  if (seq == 0) return;
  step.executor.run(p.batch * p.query_heads, [&](std::int64_t bh) {
    for (std::int64_t i = 0; i < seq; ++i)
      f(bh / p.query_heads, bh % p.query_heads, i, bh * seq + i);
  });
}

void forward_row(const ForwardStep& step, const RowState& state, std::int64_t b, std::int64_t h,
                 std::int64_t i, std::int64_t row) {
  const Problem& p = step.plan.problem();
  const std::int64_t g = h / (p.query_heads / p.kv_heads);
  double* acc = state.acc + row * p.value_dim;
  const auto exp = [](double x) { return std::exp(x); };
  for (std::int64_t j = 0; j < step.key.dim(1); ++j) {
    if (!step.schedule.visible(b, h, i, j)) continue;
    const double s = score(step, offset(step.query, b, i, h), offset(step.key, b, j, g)).value;
    const double max = s > state.max[row] ? s : state.max[row];
    const double old = rescale(state.max[row], max, exp);
    const double weight = rescale(s, max, exp);
    const std::int64_t v = offset(step.value, b, j, g);
    for (std::int64_t d = 0; d < p.value_dim; ++d) {
      acc[d] = acc[d] * old + weight * load(step.value.dtype, step.value.data, v + d);
    }
    state.sum[row] = state.sum[row] * old + weight;
    state.max[row] = max;
  }
}

void finish_row(const ForwardStep& step, const RowState& state, std::int64_t b, std::int64_t h,
                std::int64_t i, std::int64_t row) {
  const double sink = step.sinks == nullptr ? -kInfinity<double> : step.sinks[h];
  const auto result = finish(state.max[row], state.sum[row], sink);
  const std::int64_t dim = step.plan.problem().value_dim;
  const std::int64_t o = offset(step.out, b, i, h);
  for (std::int64_t d = 0; d < dim; ++d) {
    const double x = result.zero ? 0.0 : state.acc[row * dim + d] * result.factor;
    store(step.out.dtype, step.out.data, o + d, x);
  }
  if (step.lse.present()) {
    store(step.lse.dtype, step.lse.data, offset(step.lse, b, h, i), result.lse);
  }
}

/// delta_i = dot(out_i, dout_i) - dlse_i. A row that saw nothing has out 0 and does not look at
/// dout, which may be anything there.
double delta(const BackwardStep& step, std::int64_t b, std::int64_t h, std::int64_t i, double lse) {
  const std::int64_t dim = step.plan.problem().value_dim;
  const std::int64_t o = offset(step.out, b, i, h);
  const std::int64_t g = offset(step.dout, b, i, h);
  bool nothing =
      step.sinks != nullptr && static_cast<float>(step.sinks[h]) == static_cast<float>(lse);
  for (std::int64_t d = 0; nothing && d < dim; ++d) {
    nothing = load(step.out.dtype, step.out.data, o + d) == 0.0;
  }
  double sum = nothing ? 0.0 : dot(step.out, o, step.dout, g, dim);
  if (step.dlse.present()) {
    sum -= load(step.dlse.dtype, step.dlse.data, offset(step.dlse, b, h, i));
  }
  return sum;
}

double lse_of(const BackwardStep& step, std::int64_t b, std::int64_t h, std::int64_t i) {
  return load(step.lse.dtype, step.lse.data, offset(step.lse, b, h, i));
}

/// One pair's part of every gradient.
void backward_pair(const BackwardStep& step, std::int64_t b, std::int64_t h, std::int64_t i,
                   std::int64_t j, double lse, double delta_i, double* dq) {
  const Problem& p = step.plan.problem();
  const std::int64_t g = h / (p.query_heads / p.kv_heads);
  const std::int64_t q_at = offset(step.query, b, i, h);
  const std::int64_t k_at = offset(step.key, b, j, g);
  const std::int64_t o_at = offset(step.dout, b, i, h);
  const Score s = score(step, q_at, k_at);
  const double weight = std::exp(s.value - backward_lse(lse));
  const double dp = dot(step.dout, o_at, step.value, offset(step.value, b, j, g), p.value_dim);
  const double ds = weight * (dp - delta_i) * s.slope * static_cast<double>(step.plan.scale());
  const std::int64_t at = (b * step.key.dim(1) + j) * p.kv_heads + g;
  double* dk = reinterpret_cast<double*>(step.dkey_sum) + at * p.head_dim;
  double* dv = reinterpret_cast<double*>(step.dvalue_sum) + at * p.value_dim;
  for (std::int64_t d = 0; d < p.value_dim; ++d) {
    dv[d] += weight * load(step.dout.dtype, step.dout.data, o_at + d);
  }
  for (std::int64_t d = 0; d < p.head_dim; ++d) {
    dk[d] += ds * load(step.query.dtype, step.query.data, q_at + d);
    dq[d] += ds * load(step.key.dtype, step.key.data, k_at + d);
  }
}

/// dsink_h = -sum over b, i of exp(sink_h - lse_i) * delta_i.
void sink_gradients(const BackwardStep& step, const double* deltas) {
  const Problem& p = step.plan.problem();
  const std::int64_t seq = step.query.dim(1);
  for (std::int64_t h = 0; h < p.query_heads; ++h) {
    double sum = 0.0;
    for (std::int64_t b = 0; b < p.batch; ++b) {
      for (std::int64_t i = 0; i < seq; ++i) {
        const double lse = lse_of(step, b, h, i);
        const bool moves = std::abs(step.sinks[h]) != kInfinity<double>;
        if (moves) sum -= std::exp(step.sinks[h] - lse) * deltas[(b * p.query_heads + h) * seq + i];
      }
    }
    step.dsinks[h] = sum;
  }
}

}  // namespace

std::optional<std::string> ReferenceBackend::why_not(const Problem& problem, const Options&) const {
  if (problem.device != Device::kCpu) return "it runs on the CPU only";
  return std::nullopt;
}

TileShape ReferenceBackend::tiles(const Problem&, const TileHint& hint, Pass) const {
  // Only counts and pictures see these; the arithmetic has no tiles.
  return {
      std::clamp<std::int64_t>(hint.q_blocksize > 0 ? hint.q_blocksize : 64, 1, TileBits::kMaxRows),
      std::clamp<std::int64_t>(hint.kv_blocksize > 0 ? hint.kv_blocksize : 128, 1,
                               TileBits::kMaxKeys)};
}

std::size_t ReferenceBackend::state_bytes(const Plan& plan, Pass pass) const {
  const Problem& p = plan.problem();
  const std::int64_t rows = p.batch * p.query_heads * plan.query_rows(plan.rank()).size();
  const std::int64_t width = pass == Pass::kForward ? p.value_dim + 2 : p.head_dim + 1;
  return static_cast<std::size_t>(rows * width) * sizeof(double);
}

PassCounts ReferenceBackend::forward(const ForwardStep& step) const {
  const RowState state = carve(step, query_rows(step), step.plan.problem().value_dim);
  if (step.first) {
    const std::int64_t rows = query_rows(step);
    std::fill(state.acc, state.max, 0.0);
    std::fill_n(state.max, rows, -kInfinity<double>);
    std::fill_n(state.sum, rows, 0.0);
  }
  for_rows(step, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t row) {
    forward_row(step, state, b, h, i, row);
    if (step.last) finish_row(step, state, b, h, i, row);
  });
  return count_tiles(step.schedule, step.plan.problem(), Pass::kForward);
}

PassCounts ReferenceBackend::backward(const BackwardStep& step) const {
  const Problem& p = step.plan.problem();
  const std::int64_t rows = query_rows(step);
  auto* dq = reinterpret_cast<double*>(step.state.data());  // [rows, D]
  double* deltas = dq + rows * p.head_dim;                  // [rows]
  const std::int64_t keys = p.batch * step.key.dim(1) * p.kv_heads;
  if (!step.adds) {
    std::fill_n(reinterpret_cast<double*>(step.dkey_sum), keys * p.head_dim, 0.0);
    std::fill_n(reinterpret_cast<double*>(step.dvalue_sum), keys * p.value_dim, 0.0);
  }
  if (step.first) {
    std::fill_n(dq, rows * p.head_dim, 0.0);
    for_rows(step, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t row) {
      deltas[row] = delta(step, b, h, i, lse_of(step, b, h, i));
    });
    if (step.dsinks != nullptr) sink_gradients(step, deltas);
  }
  // Query heads of a group add to the same dK and dV rows: one task per (batch row, group).
  const std::int64_t seq = step.query.dim(1);
  const std::int64_t group = p.query_heads / p.kv_heads;
  step.executor.run(p.batch * p.kv_heads, [&](std::int64_t bg) {
    const std::int64_t b = bg / p.kv_heads;
    for (std::int64_t h = bg % p.kv_heads * group; h < (bg % p.kv_heads + 1) * group; ++h) {
      for (std::int64_t i = 0; i < seq; ++i) {
        const double lse = lse_of(step, b, h, i);
        const std::int64_t row = (b * p.query_heads + h) * seq + i;
        for (std::int64_t j = 0; std::abs(lse) != kInfinity<double> && j < step.key.dim(1); ++j) {
          if (step.schedule.visible(b, h, i, j)) {
            backward_pair(step, b, h, i, j, lse, deltas[row], dq + row * p.head_dim);
          }
        }
      }
    }
  });
  if (step.last) {
    for_rows(step, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t row) {
      const std::int64_t at = offset(step.dquery, b, i, h);
      for (std::int64_t d = 0; d < p.head_dim; ++d) {
        ringattn::store(step.dquery.dtype, step.dquery.data, at + d, dq[row * p.head_dim + d]);
      }
    });
  }
  return count_tiles(step.schedule, p, Pass::kBackward);
}

void ReferenceBackend::accumulate(std::byte* sum, const std::byte* part, std::int64_t n, Executor&,
                                  Stream) const {
  auto* to = reinterpret_cast<double*>(sum);
  const auto* from = reinterpret_cast<const double*>(part);
  for (std::int64_t i = 0; i < n; ++i) to[i] += from[i];
}

void ReferenceBackend::store(const std::byte* sum, TensorView out, Executor&, Stream) const {
  const auto* from = reinterpret_cast<const double*>(sum);
  for (std::int64_t b = 0; b < out.dim(0); ++b) {
    for (std::int64_t i = 0; i < out.dim(1); ++i) {
      for (std::int64_t g = 0; g < out.dim(2); ++g) {
        const std::int64_t at = offset(out, b, i, g);
        for (std::int64_t d = 0; d < out.dim(3); ++d) {
          ringattn::store(out.dtype, out.data, at + d, *from++);
        }
      }
    }
  }
}

}  // namespace ringattn
