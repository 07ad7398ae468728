// SPDX-License-Identifier: Apache-2.0
// softmax_aux in its three forms: to one logit per head, and back to its own gradient.
#include <cmath>

#include "arguments.h"
#include "dtype.h"
#include "merge.h"

namespace ringattn {
namespace {

double sink(const ConstTensorView& sinks, std::int64_t i, std::int64_t j) {
  return load(sinks.dtype, sinks.data, offset(sinks, i, j));
}

/// logsumexp of n sinks; at(j) reads them. -inf counts as absent, +inf and NaN win.
template <class At>
double logsumexp(std::int64_t n, At at) {
  double max = -kInfinity<double>;
  for (std::int64_t j = 0; j < n; ++j) {
    const double x = at(j);
    if (x != x || x == kInfinity<double>) return x;
    max = x > max ? x : max;
  }
  double sum = 0.0;
  for (std::int64_t j = 0; j < n; ++j) sum += std::exp(at(j) - reference(max));
  return max + std::log(sum);
}

/// d lse / d sink; none of it where the logit is infinite: those take no gradient.
double share(double x, double lse) {
  return std::abs(lse) == kInfinity<double> ? 0.0 : std::exp(x - lse);
}

}  // namespace

void combine_sinks(const ConstTensorView& sinks, std::int64_t heads, double* out) {
  const SinkForm form = sink_form(sinks, heads);
  for (std::int64_t h = 0; h < heads; ++h) {
    switch (form) {
      case SinkForm::kNone: out[h] = -kInfinity<double>; break;
      case SinkForm::kPerHead: out[h] = sink(sinks, h, 0); break;
      case SinkForm::kShared:
        out[h] = h > 0 ? out[0]
                       : logsumexp(sinks.dim(0), [&](std::int64_t j) { return sink(sinks, j, 0); });
        break;
      case SinkForm::kPerHeadMany:
        out[h] = logsumexp(sinks.dim(1), [&](std::int64_t j) { return sink(sinks, h, j); });
        break;
    }
  }
}

void spread_sink_gradients(const ConstTensorView& sinks, const double* dhead, std::int64_t heads,
                           TensorView dsinks) {
  const SinkForm form = sink_form(sinks, heads);
  if (form == SinkForm::kPerHead) {
    for (std::int64_t h = 0; h < heads; ++h) {
      store(dsinks.dtype, dsinks.data, offset(dsinks, h), dhead[h]);
    }
  } else if (form == SinkForm::kShared) {
    const auto at = [&](std::int64_t j) { return sink(sinks, j, 0); };
    const double lse = logsumexp(sinks.dim(0), at);
    double total = 0.0;
    for (std::int64_t h = 0; h < heads; ++h) total += dhead[h];
    for (std::int64_t j = 0; j < sinks.dim(0); ++j) {
      store(dsinks.dtype, dsinks.data, offset(dsinks, j), share(at(j), lse) * total);
    }
  } else if (form == SinkForm::kPerHeadMany) {
    for (std::int64_t h = 0; h < heads; ++h) {
      const auto at = [&](std::int64_t j) { return sink(sinks, h, j); };
      const double lse = logsumexp(sinks.dim(1), at);
      for (std::int64_t j = 0; j < sinks.dim(1); ++j) {
        store(dsinks.dtype, dsinks.data, offset(dsinks, h, j), share(at(j), lse) * dhead[h]);
      }
    }
  }
}

}  // namespace ringattn
