// SPDX-License-Identifier: Apache-2.0
// The elementwise passes over a tile of scores: softmax and its gradient. For kernels.cpp alone.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

// NOLINTBEGIN(google-build-namespaces, misc-definitions-in-headers)
namespace ringattn::cpu {
namespace {

constexpr float kLog2e = 1.4426950408889634F;
constexpr float kMinusInfinity = -__builtin_inff();

/// Weights may be as large as 2^kSlack before the reference of a row moves.
constexpr float kSlack = 8.0F;

/// Weights and sums that are this large come from a reference that is too small.
constexpr float kTooLarge = 0x1p40F;

/// Vectors that take their exponentials together.
constexpr int kTogether = 4;

/// The visible lanes of columns [j, j + kLanes) of a row.
inline Lanes visible(const std::uint64_t* bits, std::int64_t j, std::int64_t keys) {
  std::uint32_t lanes = ~0U;
  if (bits != nullptr) lanes = static_cast<std::uint32_t>(bits[j / 64] >> (j % 64));
  if (keys - j < kLanes) lanes &= (1U << (keys > j ? keys - j : 0)) - 1U;
  return lanes_of(lanes);
}

/// All columns of a row that need no mask.
inline std::int64_t unmasked(const std::uint64_t* bits, std::int64_t keys) {
  return bits != nullptr ? 0 : keys / kLanes * kLanes;
}

inline const std::uint64_t* row_bits(const std::uint64_t* bits, std::int64_t words,
                                     std::int64_t row) {
  return bits == nullptr ? nullptr : bits + row * words;
}

/// Scoring as two factors: x * inner, then through tanh, times outer; without a cap only inner.
struct Units {
  F inner;
  F outer;

  explicit Units(const Scoring& s)
      : inner(splat(s.cap == 0.0F ? s.scale * kLog2e : s.scale / s.cap)),
        outer(splat(s.cap * kLog2e)) {}
};

// ---- softmax

/// Without a cap and with a scale that keeps the order of products, a row's maximum is that of its
/// products, and one multiply-add takes a product to its exponent. Otherwise scores are written
/// back first.
inline bool products_are_ordered(const Scoring& s) { return s.cap == 0.0F && s.scale > 0.0F; }

/// The largest product of the visible columns of a row. Hidden ones become -inf.
inline float top_product(float* s, const std::uint64_t* bits, std::int64_t keys) {
  const std::int64_t free = unmasked(bits, keys);
  F top = splat(kMinusInfinity);
  std::int64_t j = 0;
  for (; j < free; j += kLanes) top = max(top, load(s + j));
  for (; j < padded(keys); j += kLanes) {
    const F x = select(visible(bits, j, keys), load(s + j), splat(kMinusInfinity));
    store(s + j, x);
    top = max(top, x);
  }
  return max_lanes(top);
}

/// Scales, caps and masks one row in place; its maximum.
template <bool kCap>
float top_score(float* s, const std::uint64_t* bits, std::int64_t keys, const Units& units) {
  const std::int64_t free = unmasked(bits, keys);
  F top = splat(kMinusInfinity);
  for (std::int64_t j = 0; j < padded(keys); j += kLanes) {
    F x = load(s + j) * units.inner;
    if constexpr (kCap) x = units.outer * tanh(x);
    if (j >= free) x = select(visible(bits, j, keys), x, splat(kMinusInfinity));
    store(s + j, x);
    top = max(top, x);
  }
  return max_lanes(top);
}

/// s = exp2(s * factor - shift) for n vectors; adds them to the sum.
template <int n>
inline void weigh(float* s, F factor, F shift, F& sum) {
  F x[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) x[i] = load(s + i * kLanes) * factor - shift;
  exp2(x);
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    store(s + i * kLanes, x[i]);
    sum += x[i];
  }
}

/// The same for a row of n columns; its sum.
inline float weigh_row(float* s, std::int64_t n, F factor, F shift) {
  F sum{};
  std::int64_t j = 0;
  for (; j + kTogether * kLanes <= n; j += kTogether * kLanes) {
    weigh<kTogether>(s + j, factor, shift, sum);
  }
  for (; j < n; j += kLanes) weigh<1>(s + j, factor, shift, sum);
  return sum_lanes(sum);
}

/// The largest scores of rows [begin, begin + rows), in log2 units; scores are then ready for
/// weigh_row with the factor that is returned.
inline F top_of_rows(const SoftmaxTile& t, const Units& units, std::int64_t begin,
                     std::int64_t rows, float* top) {
  const bool ordered = products_are_ordered(t.scoring);
  for (std::int64_t i = 0; i < rows; ++i) {
    float* s = t.s + (begin + i) * t.stride;
    const std::uint64_t* bits = row_bits(t.bits, t.words, begin + i);
    if (ordered) {
      top[i] = top_product(s, bits, t.keys) * units.inner[0];
    } else if (t.scoring.cap == 0.0F) {
      top[i] = top_score<false>(s, bits, t.keys, units);
    } else {
      top[i] = top_score<true>(s, bits, t.keys, units);
    }
  }
  return ordered ? units.inner : splat(1.0F);
}

/// kLanes rows at a time: their maxima and factors are one vector, and no row's exponentials wait
/// for the maximum of the row before.
void softmax(const SoftmaxTile& t) {
  const Units units(t.scoring);
  for (std::int64_t begin = 0; begin < t.rows; begin += kLanes) {
    const std::int64_t rows = t.rows - begin < kLanes ? t.rows - begin : kLanes;
    float top[kLanes] = {};
    float old[kLanes] = {};
    float shift[kLanes];
    float rescale[kLanes];
    const F factor = top_of_rows(t, units, begin, rows, top);
    for (std::int64_t i = 0; i < rows; ++i) old[i] = t.max[begin + i];
    // A maximum that grows by little stays the reference: nothing has to be multiplied then. If the
    // new one is NaN, the sum will say so.
    const F before = load(old);
    const F now = select(at_least(load(top), before + kSlack), load(top), before);
    const F against = select(at_least(splat(kMinusInfinity), now), F{}, now);  // merge.h: reference()
    store(shift, against);
    store(rescale, select(at_least(before, now), splat(1.0F), exp2(before - against)));
    store(top, now);
    for (std::int64_t i = 0; i < rows; ++i) {
      const float sum =
          weigh_row(t.s + (begin + i) * t.stride, padded(t.keys), factor, splat(shift[i]));
      t.factor[begin + i] = rescale[i];
      t.sum[begin + i] = t.sum[begin + i] * rescale[i] + sum;
      t.max[begin + i] = top[i];
    }
  }
}

/// softmax() for rows that have a reference already and no mask, without looking for maxima.
Trial softmax_again(const SoftmaxTile& t) {
  if (!products_are_ordered(t.scoring) || t.bits != nullptr || t.keys % kPanel != 0) {
    return Trial::kNot;
  }
  const Units units(t.scoring);
  for (std::int64_t i = 0; i < t.rows; ++i) {
    if (t.max[i] == kMinusInfinity) return Trial::kNot;
  }
  bool fits = true;
  for (std::int64_t i = 0; i < t.rows; ++i) {
    t.factor[i] = weigh_row(t.s + i * t.stride, t.keys, units.inner, splat(t.max[i]));
    fits = fits && t.factor[i] <= kTooLarge;
  }
  if (!fits) return Trial::kSpoilt;
  for (std::int64_t i = 0; i < t.rows; ++i) {
    t.sum[i] += t.factor[i];
    t.factor[i] = 1.0F;
  }
  return Trial::kDone;
}

// ---- gradients

/// n vectors of a row, from column j; masked from column `free` on.
template <bool kCap, int n>
inline void gradient_columns(const GradientTile& t, const Units& units, std::int64_t row,
                             const std::uint64_t* bits, std::int64_t free, std::int64_t j) {
  float* s = t.s + row * t.stride + j;
  float* dp = t.dp + row * t.stride + j;
  const F lse = splat(t.lse[row]);
  const F delta = splat(t.delta[row]);
  F p[n];
  F slope[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    const F x = load(s + i * kLanes) * units.inner;
    if constexpr (kCap) {
      const F u = tanh(x);
      p[i] = units.outer * u - lse;
      slope[i] = 1.0F - u * u;
    } else {
      p[i] = x - lse;
    }
  }
  exp2(p);
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    F ds = p[i] * (load(dp + i * kLanes) - delta);
    if constexpr (kCap) ds *= slope[i];
    if (j + i * kLanes >= free) {
      const Lanes mask = visible(bits, j + i * kLanes, t.keys);
      p[i] = select(mask, p[i], F{});
      ds = select(mask, ds, F{});
    }
    store(s + i * kLanes, p[i]);
    store(dp + i * kLanes, ds);
  }
}

template <bool kCap>
void gradient_row(const GradientTile& t, const Units& units, std::int64_t row) {
  const std::uint64_t* bits = row_bits(t.bits, t.words, row);
  const std::int64_t free = unmasked(bits, t.keys);
  constexpr std::int64_t kStep = kTogether * kLanes;
  std::int64_t j = 0;
  for (; j + kStep <= free; j += kStep) {
    gradient_columns<kCap, kTogether>(t, units, row, bits, j + kStep, j);
  }
  for (; j < padded(t.keys); j += kLanes) gradient_columns<kCap, 1>(t, units, row, bits, free, j);
}

void gradient(const GradientTile& t) {
  const Units units(t.scoring);
  for (std::int64_t i = 0; i < t.rows; ++i) {
    if (t.scoring.cap != 0.0F) {
      gradient_row<true>(t, units, i);
    } else {
      gradient_row<false>(t, units, i);
    }
  }
}

}  // namespace
}  // namespace ringattn::cpu
// NOLINTEND(google-build-namespaces, misc-definitions-in-headers)
