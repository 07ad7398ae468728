// SPDX-License-Identifier: Apache-2.0
#include "support/naive_sinks.h"

#include <cmath>
#include <limits>

#include "dtype.h"

namespace ringattn::support {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

/// softmax_aux as [groups, S]: one group per head, or one for all heads.
struct Groups {
  std::int64_t count;
  std::int64_t size;
  std::vector<double> sinks;
};

Groups groups_of(const ConstTensorView& view, std::int64_t heads) {
  Groups g{1, view.dim(0), {}};
  if (view.rank == 2) g = {heads, view.dim(1), {}};
  if (view.rank == 1 && view.dim(0) == heads) g = {heads, 1, {}};
  for (std::int64_t i = 0; i < view.dim(0); ++i) {
    for (std::int64_t j = 0; j < (view.rank == 2 ? view.dim(1) : 1); ++j) {
      g.sinks.push_back(load(view.dtype, view.data, offset(view, i, j)));
    }
  }
  return g;
}

double logsumexp(const double* x, std::int64_t n) {
  double max = -kInf;
  for (std::int64_t j = 0; j < n; ++j) max = std::fmax(max, x[j]);
  if (std::isinf(max)) return max;
  double sum = 0.0;
  for (std::int64_t j = 0; j < n; ++j) sum += std::exp(x[j] - max);
  return max + std::log(sum);
}

}  // namespace

std::vector<double> head_sinks(const ConstTensorView& sinks, std::int64_t heads) {
  std::vector<double> logits(static_cast<std::size_t>(heads), -kInf);
  if (!sinks.present()) return logits;
  const Groups g = groups_of(sinks, heads);
  for (std::int64_t h = 0; h < heads; ++h) {
    const std::int64_t group = g.count == 1 ? 0 : h;
    logits[static_cast<std::size_t>(h)] = logsumexp(g.sinks.data() + group * g.size, g.size);
  }
  return logits;
}

HostTensor spread_to_sinks(const ConstTensorView& sinks, const std::vector<float>& dhead) {
  const auto heads = static_cast<std::int64_t>(dhead.size());
  const Groups g = groups_of(sinks, heads);
  std::vector<std::int64_t> shape(sinks.shape.begin(), sinks.shape.begin() + sinks.rank);
  HostTensor result(DType::kFloat32, shape);
  const bool one_for_all = g.count == 1 && heads > 1;
  for (std::int64_t n = 0; n < g.count; ++n) {
    double total = 0.0;
    for (std::int64_t h = 0; h < heads; ++h) {
      if (one_for_all || h == n) total += static_cast<double>(dhead[static_cast<std::size_t>(h)]);
    }
    const double* x = g.sinks.data() + n * g.size;
    const double lse = logsumexp(x, g.size);
    for (std::int64_t j = 0; j < g.size; ++j) {
      const double share = std::isinf(lse) ? 0.0 : std::exp(x[j] - lse);
      result.as<float>()[n * g.size + j] = static_cast<float>(share * total);
    }
  }
  return result;
}

}  // namespace ringattn::support
