// SPDX-License-Identifier: Apache-2.0
// softmax_aux in its three forms: to one logit per head, and back to its own gradient. For hosts
// and devices.
#pragma once

#include <cmath>
#include <cstdint>

#include "arguments.h"
#include "dtype.h"
#include "merge.h"

namespace ringattn {

/// Logits in groups: [H] is H groups of one, [S] one group that all heads share, [H, S] H groups.
class SinkView {
 public:
  /// Throws for any other shape.
  SinkView(const ConstTensorView& sinks, std::int64_t heads)
      : sinks_(sinks), form_(sink_form(sinks, heads)), heads_(heads) {
    if (form_ == SinkForm::kNone) return;
    groups_ = form_ == SinkForm::kShared ? 1 : heads;
    size_ = form_ == SinkForm::kPerHead ? 1 : sinks.dim(sinks.rank - 1);
  }

  RINGATTN_HOST_DEVICE std::int64_t groups() const { return groups_; }

  /// The logit of head h: logsumexp over the sinks that it has, -inf without any.
  RINGATTN_HOST_DEVICE double logit(std::int64_t h) const {
    if (form_ == SinkForm::kNone) return -kInfinity<double>;
    return form_ == SinkForm::kPerHead ? sink(h, 0) : logsumexp(groups_ == 1 ? 0 : h);
  }

  /// Writes the gradients of group g from those of the heads' logits.
  RINGATTN_HOST_DEVICE void store_gradients(const double* dhead, std::int64_t g,
                                            const TensorView& dsinks) const {
    double total = dhead[g];
    for (std::int64_t h = 1; form_ == SinkForm::kShared && h < heads_; ++h) total += dhead[h];
    const double lse = form_ == SinkForm::kPerHead ? 0.0 : logsumexp(g);
    for (std::int64_t s = 0; s < size_; ++s) {
      const double weight = form_ == SinkForm::kPerHead ? 1.0 : share(sink(g, s), lse);
      store(dsinks.dtype, dsinks.data, at(dsinks.strides, g, s), weight * total);
    }
  }

 private:
  template <class Strides>
  RINGATTN_HOST_DEVICE std::int64_t at(const Strides& strides, std::int64_t g,
                                       std::int64_t s) const {
    return form_ == SinkForm::kShared ? s * strides[0] : g * strides[0] + s * strides[1];
  }

  RINGATTN_HOST_DEVICE double sink(std::int64_t g, std::int64_t s) const {
    return load(sinks_.dtype, sinks_.data, at(sinks_.strides, g, s));
  }

  /// -inf counts as absent, +inf and NaN win.
  RINGATTN_HOST_DEVICE double logsumexp(std::int64_t g) const {
    double max = -kInfinity<double>;
    for (std::int64_t s = 0; s < size_; ++s) {
      const double x = sink(g, s);
      if (x != x || x == kInfinity<double>) return x;
      max = x > max ? x : max;
    }
    double sum = 0.0;
    for (std::int64_t s = 0; s < size_; ++s) sum += std::exp(sink(g, s) - reference(max));
    return max + std::log(sum);
  }

  /// d lse / d sink; none of it where the logit is infinite: those take no gradient.
  RINGATTN_HOST_DEVICE static double share(double x, double lse) {
    return lse == kInfinity<double> || lse == -kInfinity<double> ? 0.0 : std::exp(x - lse);
  }

  ConstTensorView sinks_;
  SinkForm form_;
  std::int64_t heads_;
  std::int64_t groups_ = 0;
  std::int64_t size_ = 0;
};

}  // namespace ringattn
