// SPDX-License-Identifier: Apache-2.0
// The softmax state of a row, (acc, max, sum): a monoid whose identity "saw no key" is
// (0, -inf, 0) and whose merge never makes NaN of finite scores (Milakov & Gimelshein 2018,
// arXiv 1805.02867; Rabe & Staats 2021, arXiv 2112.05682). Scores are in any log base; the caller
// passes its exponential. Sinks join once, at the end.
#pragma once

#include <cmath>
#include <limits>

#include "ringattn/mask.h"

namespace ringattn {

template <class T>
inline constexpr T kInfinity = std::numeric_limits<T>::infinity();

/// What scores are exponentiated against: the maximum, or 0 if nothing was seen, so that
/// exp(-inf - reference) is 0 and never NaN.
template <class T>
RINGATTN_HOST_DEVICE constexpr T reference(T max) {
  return max == -kInfinity<T> ? T{0} : max;
}

/// The factor for acc and sum when the maximum moves from `old_max` to `new_max`.
template <class T, class Exp>
RINGATTN_HOST_DEVICE T rescale(T old_max, T new_max, Exp exp) {
  return exp(old_max - reference(new_max));
}

/// What a finished row needs: out = zero ? 0 : acc * factor.
template <class T>
struct RowResult {
  T factor;
  T lse;      // natural log, sink included
  bool zero;  // saw nothing, or an infinite sink took everything
};

/// Joins the sink (-inf: none) and normalises. `max` and `sink` are natural logs.
template <class T>
RINGATTN_HOST_DEVICE RowResult<T> finish(T max, T sum, T sink) {
  const bool nothing = sum == T{0};
  if (sink == kInfinity<T> && !std::isnan(sum)) return {T{0}, kInfinity<T>, true};
  if (sink == -kInfinity<T>) {
    if (nothing) return {T{0}, -kInfinity<T>, true};
    return {T{1} / sum, max + std::log(sum), false};
  }
  const T top = !nothing && max > sink ? max : sink;
  const T own = nothing ? T{0} : std::exp(max - top);
  const T total = sum * own + std::exp(sink - top);
  return {own / total, top + std::log(total), nothing && !std::isnan(sink)};
}

/// lse as the backward wants it: rows that saw nothing, or gave everything to an infinite sink,
/// have weight exp(s - inf) = 0 everywhere.
template <class T>
RINGATTN_HOST_DEVICE constexpr T backward_lse(T lse) {
  return lse == -kInfinity<T> ? kInfinity<T> : lse;
}

}  // namespace ringattn
