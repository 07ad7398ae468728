// SPDX-License-Identifier: Apache-2.0
// The elementwise passes over a tile of scores: softmax and its gradient. For kernels.cpp alone.
#pragma once

#include "cpu/exponentials.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

// NOLINTBEGIN(google-build-namespaces, misc-definitions-in-headers)
namespace ringattn::cpu {
namespace {

constexpr float kLog2e = 1.4426950408889634F;
constexpr float kMinusInfinity = -__builtin_inff();

/// Weights may be as large as 2^kSlack before the reference of a row moves.
constexpr float kSlack = 8.0F;

/// Sums that are this large come from a reference that is too small.
constexpr float kTooLarge = 0x1p40F;

/// Where exponents end while it is not known whether the reference is too small: 2^x has no larger
/// ones, and would take some of them for tiny weights.
constexpr float kTopExponent = 126.0F;

/// Vectors that take their exponentials together: as many as the registers hold.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTogether = 4;
#else
constexpr int kTogether = 2;
#endif

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

/// In its lanes, the largest products of the visible columns of a row. Hidden ones become -inf.
inline F top_product(float* s, const std::uint64_t* bits, std::int64_t keys) {
  const std::int64_t free = unmasked(bits, keys);
  F top = splat(kMinusInfinity);
  std::int64_t j = 0;
  for (; j < free; j += kLanes) top = max(top, load(s + j));
  for (; j < padded(keys); j += kLanes) {
    const F x = select(visible(bits, j, keys), load(s + j), splat(kMinusInfinity));
    store(s + j, x);
    top = max(top, x);
  }
  return top;
}

/// Scales, caps and masks one row in place; in its lanes, the largest scores.
template <bool kCap>
F top_score(float* s, const std::uint64_t* bits, std::int64_t keys, const Units& units) {
  const std::int64_t free = unmasked(bits, keys);
  F top = splat(kMinusInfinity);
  for (std::int64_t j = 0; j < padded(keys); j += kLanes) {
    F x = load(s + j) * units.inner;
    if constexpr (kCap) x = units.outer * tanh(x);
    if (j >= free) x = select(visible(bits, j, keys), x, splat(kMinusInfinity));
    store(s + j, x);
    top = max(top, x);
  }
  return top;
}

/// Their sum, by halves: additions that do not wait for each other.
template <int n>
inline F add_all(const F* x) {
  if constexpr (n == 1) {
    return x[0];
  } else {
    return add_all<n / 2>(x) + add_all<n - n / 2>(x + n / 2);
  }
}

/// Sums of weights, and of what they are rounded to: a row that one key takes is that key's value,
/// as long as the same rounding error is above and below the line. In two parts they are not
/// rounded so that it matters.
struct Sums {
  F exact{};
  F rounded{};
};

/// How weights are stored: as they are, or as SoftmaxTile says of pairs.
enum class Weights : std::uint8_t { kFloats, kPairs, kSplit };

/// s = exp2(s * factor - shift) for n vectors from column j; adds them to the sums. kBound: of
/// exponents that may be of any size.
template <Weights kWeights, bool kBound, int n>
inline void weigh(float* s, std::int64_t j, F factor, F shift, Sums& sums) {
  F x[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) x[i] = load(s + j + i * kLanes) * factor - shift;
  if constexpr (kBound) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) x[i] = min(splat(kTopExponent), x[i]);
  }
  exp2(x);
  sums.exact += add_all<n>(x);
#if defined(RINGATTN_PAIRS)
  if constexpr (kWeights == Weights::kSplit) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) store(s + j + i * kLanes, split_bf16(x[i]));
    sums.rounded = sums.exact;
    return;
  } else if constexpr (kWeights == Weights::kPairs && n == 1) {
    store_half(reinterpret_cast<std::uint16_t*>(s) + j, x[0]);
    sums.rounded = dot(sums.rounded, round_to_bf16(x[0], F{}), ones());
    return;
  } else if constexpr (kWeights == Weights::kPairs) {
#pragma GCC unroll 8
    for (int i = 0; i < n; i += 2) {
      const F words = round_to_bf16(x[i], x[i + 1]);
      store(s + j / 2 + i / 2 * kLanes, words);
      sums.rounded = dot(sums.rounded, words, ones());
    }
    return;
  }
#endif
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) store(s + j + i * kLanes, x[i]);
}

/// The same for a row of n columns; the lanes of the results add up to its sums.
template <Weights kWeights, bool kBound>
inline Sums weigh_row(float* s, std::int64_t n, F factor, F shift) {
  Sums sums;
  std::int64_t j = 0;
  for (; j + kTogether * kLanes <= n; j += kTogether * kLanes) {
    weigh<kWeights, kBound, kTogether>(s, j, factor, shift, sums);
  }
  for (; j < n; j += kLanes) weigh<kWeights, kBound, 1>(s, j, factor, shift, sums);
  return sums;
}

/// The same for rows [begin, begin + rows), at most kLanes of them; lanes i of the results are the
/// sums of row i.
template <Weights kWeights, bool kBound>
inline Sums weigh_rows(const SoftmaxTile& t, std::int64_t begin, std::int64_t rows, F factor,
                       const float* shift) {
  constexpr bool kPairs = kWeights != Weights::kFloats;
  F exact[kLanes];
  F rounded[kLanes];
  for (std::int64_t i = rows; i < kLanes; ++i) exact[i] = rounded[i] = F{};
  for (std::int64_t i = 0; i < rows; ++i) {
    const Sums sums = weigh_row<kWeights, kBound>(t.s + (begin + i) * t.stride, padded(t.keys),
                                                  factor, splat(shift[i]));
    exact[i] = sums.exact;
    if constexpr (kPairs) rounded[i] = sums.rounded;
  }
  Sums all;
  all.exact = sum_rows(exact);
  if constexpr (kPairs) all.rounded = sum_rows(rounded);
  return all;
}

/// The largest scores of rows [begin, begin + rows), in log2 units; scores are then ready for
/// weigh_rows with the factor.
inline F top_of_rows(const SoftmaxTile& t, const Units& units, std::int64_t begin,
                     std::int64_t rows, F& factor) {
  const bool ordered = products_are_ordered(t.scoring);
  factor = ordered ? units.inner : splat(1.0F);
  F tops[kLanes];
  for (std::int64_t i = rows; i < kLanes; ++i) tops[i] = F{};
  for (std::int64_t i = 0; i < rows; ++i) {
    float* s = t.s + (begin + i) * t.stride;
    const std::uint64_t* bits = row_bits(t.bits, t.words, begin + i);
    if (ordered) {
      tops[i] = top_product(s, bits, t.keys);
    } else if (t.scoring.cap == 0.0F) {
      tops[i] = top_score<false>(s, bits, t.keys, units);
    } else {
      tops[i] = top_score<true>(s, bits, t.keys, units);
    }
  }
  return max_rows(tops) * factor;
}

/// x = x * factor + more for `rows` values, at most kLanes.
inline void add_to(float* x, F factor, F more, std::int64_t rows) {
  store_some(x, load_some(x, rows) * factor + more, rows);
}

/// kLanes rows at a time: their maxima and factors are one vector, and no row's exponentials wait
/// for the maximum of the row before.
template <Weights kWeights>
void softmax_of(const SoftmaxTile& t) {
  constexpr bool kPairs = kWeights != Weights::kFloats;
  const Units units(t.scoring);
  for (std::int64_t begin = 0; begin < t.rows; begin += kLanes) {
    const std::int64_t rows = t.rows - begin < kLanes ? t.rows - begin : kLanes;
    float shift[kLanes];
    F factor;
    const F top = top_of_rows(t, units, begin, rows, factor);
    // A maximum that grows by little stays the reference: nothing has to be multiplied then. If the
    // new one is NaN, the sum will say so.
    const F before = load_some(t.max + begin, rows);
    const F now = select(at_least(top, before + kSlack), top, before);
    const F against =
        select(at_least(splat(kMinusInfinity), now), F{}, now);  // merge.h: reference()
    store(shift, against);
    const F rescale = select(at_least(before, now), splat(1.0F), exp2(before - against));
    const Sums sums = weigh_rows<kWeights, false>(t, begin, rows, factor, shift);
    store_some(t.factor + begin, rescale, rows);
    add_to(t.sum + begin, rescale, sums.exact, rows);
    if constexpr (kPairs) add_to(t.rounded + begin, rescale, sums.rounded, rows);
    store_some(t.max + begin, now, rows);
  }
}

/// References for rows that have none, at most kLanes from `begin` on: the largest of their first
/// scores. False: some row has none yet.
inline bool guess_references(const SoftmaxTile& t, F factor, std::int64_t begin,
                             std::int64_t rows) {
  const F before = load_some(t.max + begin, rows);
  const Lanes none = at_least(splat(kMinusInfinity), before);
  if (!any(none)) return true;
  F tops[kLanes];
  for (std::int64_t i = rows; i < kLanes; ++i) tops[i] = F{};
  for (std::int64_t i = 0; i < rows; ++i) tops[i] = load(t.s + (begin + i) * t.stride);
  const F now = select(none, max_rows(tops) * factor, before);
  store_some(t.max + begin, now, rows);
  return !any(at_least(splat(kMinusInfinity), now));
}

/// softmax() for rows without a mask, without looking for all maxima.
template <Weights kWeights>
Trial softmax_again_of(const SoftmaxTile& t) {
  constexpr bool kPairs = kWeights != Weights::kFloats;
  if (!products_are_ordered(t.scoring) || t.bits != nullptr || t.keys % kPanel != 0) {
    return Trial::kNot;
  }
  const Units units(t.scoring);
  [[maybe_unused]] float rounded[kMostRows];
  Lanes large = lanes_of(0);
  for (std::int64_t begin = 0; begin < t.rows; begin += kLanes) {
    const std::int64_t rows = t.rows - begin < kLanes ? t.rows - begin : kLanes;
    if (!guess_references(t, units.inner, begin, rows)) {
      return begin == 0 ? Trial::kNot : Trial::kSpoilt;
    }
    const Sums sums = weigh_rows<kWeights, true>(t, begin, rows, units.inner, t.max + begin);
    large |= not_below(sums.exact, splat(kTooLarge));
    store_some(t.factor + begin, sums.exact, rows);
    if constexpr (kPairs) store_some(rounded + begin, sums.rounded, rows);
  }
  if (any(large)) return Trial::kSpoilt;
  for (std::int64_t i = 0; i < t.rows; ++i) {
    t.sum[i] += t.factor[i];
    if constexpr (kPairs) t.rounded[i] += rounded[i];
    t.factor[i] = 1.0F;
  }
  return Trial::kDone;
}

void softmax(const SoftmaxTile& t) {
#if defined(RINGATTN_PAIRS)
  if (t.pairs && t.split) return softmax_of<Weights::kSplit>(t);
  if (t.pairs) return softmax_of<Weights::kPairs>(t);
#endif
  softmax_of<Weights::kFloats>(t);
}

Trial softmax_again(const SoftmaxTile& t) {
#if defined(RINGATTN_PAIRS)
  if (t.pairs && t.split) return softmax_again_of<Weights::kSplit>(t);
  if (t.pairs) return softmax_again_of<Weights::kPairs>(t);
#endif
  return softmax_again_of<Weights::kFloats>(t);
}

/// The natural logarithm of positive normal numbers, within an ulp: x = 2^k (1 + f), and a minimax
/// polynomial (Cephes, logf) for f in [sqrt(1/2) - 1, sqrt(2) - 1].
inline F log(F x) {
  constexpr std::int32_t kRootHalf = 0x3F3504F3;
  constexpr float kPolynomial[] = {-1.1514610310E-1F, 1.1676998740E-1F,  -1.2420140846E-1F,
                                   1.4249322787E-1F,  -1.6668057665E-1F, 2.0000714765E-1F,
                                   -2.4999993993E-1F, 3.3333331174E-1F};
  const I bits = as_int(x) - kRootHalf;
  const F k = __builtin_convertvector(bits >> 23, F);
  const F f = as_float((bits & 0x7FFFFF) + kRootHalf) - 1.0F;
  F p = splat(7.0376836292E-2F);
#pragma GCC unroll 8
  for (const float coefficient : kPolynomial) p = p * f + coefficient;
  // ln 2 in two parts, the first of them exact for every k.
  const F low = p * f * f * f + k * -2.12194440E-4F - 0.5F * f * f;
  return k * 0.693359375F + (f + low);
}

bool finish(const Finish& t) {
  constexpr float kSmallest = 0x1p-126F;
  constexpr float kLn2 = 0.6931471805599453F;
  for (std::int64_t i = 0; i < t.rows; ++i) {
    if (!(t.sum[i] >= kSmallest && t.sum[i] < __builtin_inff())) return false;
  }
  for (std::int64_t i = 0; i < t.rows; i += kLanes) {
    const std::int64_t rows = t.rows - i;
    const F sum = load_some(t.sum + i, rows);
    store_some(t.factor + i, 1.0F / load_some(t.weights + i, rows), rows);
    store_some(t.lse + i, load_some(t.max + i, rows) * kLn2 + log(sum), rows);
  }
  return true;
}

// ---- gradients

/// P and dS of n vectors of a row, from column j; masked from column `free` on.
template <bool kCap, int n>
inline void gradient_of(const GradientTile& t, const Units& units, std::int64_t row,
                        std::int64_t free, std::int64_t j, F (&p)[n], F (&ds)[n]) {
  const float* s = t.s + row * t.stride + j;
  const float* dp = t.dp + row * t.stride + j;
  const F lse = splat(t.lse[row]);
  const F delta = splat(t.delta[row]);
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
    ds[i] = p[i] * (load(dp + i * kLanes) - delta);
    if constexpr (kCap) ds[i] *= slope[i];
    if (j + i * kLanes >= free) {
      const Lanes mask = visible(row_bits(t.bits, t.words, row), j + i * kLanes, t.keys);
      p[i] = select(mask, p[i], F{});
      ds[i] = select(mask, ds[i], F{});
    }
  }
}

template <bool kCap, int n>
inline void gradient_columns(const GradientTile& t, const Units& units, std::int64_t row,
                             std::int64_t free, std::int64_t j) {
  F p[n];
  F ds[n];
  gradient_of<kCap, n>(t, units, row, free, j, p, ds);
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    store(t.s + row * t.stride + j + i * kLanes, p[i]);
    store(t.dp + row * t.stride + j + i * kLanes, ds[i]);
  }
}

template <bool kCap>
void gradient_row(const GradientTile& t, const Units& units, std::int64_t row) {
  const std::int64_t free = unmasked(t.bits, t.keys);
  constexpr std::int64_t kStep = kTogether * kLanes;
  std::int64_t j = 0;
  for (; j + kStep <= free; j += kStep) {
    gradient_columns<kCap, kTogether>(t, units, row, j + kStep, j);
  }
  for (; j < padded(t.keys); j += kLanes) gradient_columns<kCap, 1>(t, units, row, free, j);
}

#if defined(RINGATTN_PAIRS)
/// n vectors of two rows (or of the last one and zeros), as words.
template <bool kCap, int kCount, int n>
inline void gradient_pairs(const GradientTile& t, const Units& units, std::int64_t row,
                           std::int64_t free, std::int64_t j) {
  F p[2][n] = {};
  F ds[2][n] = {};
#pragma GCC unroll 2
  for (int r = 0; r < kCount; ++r) gradient_of<kCap, n>(t, units, row + r, free, j, p[r], ds[r]);
#pragma GCC unroll 2
  for (int i = 0; i < n; ++i) {
    const std::int64_t at = row * t.stride + j + i * kLanes;
    store(t.s + at, interleave_bf16(p[0][i], p[1][i]));
    store(t.s + at + t.stride, interleave_bf16(ds[0][i], ds[1][i]));
#pragma GCC unroll 2
    for (int r = 0; r < kCount; ++r) store(t.dp + at + r * t.stride, split_bf16(ds[r][i]));
  }
}

template <bool kCap, int kCount>
void gradient_row_pairs(const GradientTile& t, const Units& units, std::int64_t row) {
  const std::int64_t free = unmasked(t.bits, t.keys);
  constexpr std::int64_t kStep = 2 * kLanes;
  std::int64_t j = 0;
  for (; j + kStep <= free; j += kStep) {
    gradient_pairs<kCap, kCount, 2>(t, units, row, j + kStep, j);
  }
  for (; j < padded(t.keys); j += kLanes) {
    gradient_pairs<kCap, kCount, 1>(t, units, row, free, j);
  }
}
#endif

template <bool kCap>
void gradient_rows(const GradientTile& t) {
  const Units units(t.scoring);
#if defined(RINGATTN_PAIRS)
  if (t.pairs) {
    std::int64_t i = 0;
    for (; i + 2 <= t.rows; i += 2) gradient_row_pairs<kCap, 2>(t, units, i);
    if (i < t.rows) gradient_row_pairs<kCap, 1>(t, units, i);
    return;
  }
#endif
  for (std::int64_t i = 0; i < t.rows; ++i) gradient_row<kCap>(t, units, i);
}

void gradient(const GradientTile& t) {
  if (t.scoring.cap != 0.0F) {
    gradient_rows<true>(t);
  } else {
    gradient_rows<false>(t);
  }
}

}  // namespace
}  // namespace ringattn::cpu
// NOLINTEND(google-build-namespaces, misc-definitions-in-headers)
