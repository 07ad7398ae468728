// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set with RINGATTN_ISA=<name>. Includes nothing whose inline
// functions another compilation could share: those would carry this one's instructions along.
#include "cpu/kernels.h"

#include "cpu/simd.h"

namespace ringattn::cpu {
namespace {

constexpr float kLog2e = 1.4426950408889634F;
constexpr float kMinusInfinity = -__builtin_inff();

// ---- products

/// R rows times C vectors of columns: the accumulators live in registers.
template <int R, int C>
void product_block(const Product& p, std::int64_t i, std::int64_t j) {
  F acc[R][C] = {};
  const float* b[C];
  for (int c = 0; c < C; ++c) {
    const std::int64_t column = j + c * kLanes;
    b[c] = p.b + column / kPanel * p.b_group + column % kPanel;
  }
  for (std::int64_t k = 0; k < p.depth; k += kPanel) {
    const float* a = p.a + k / kPanel * p.a_group + i * p.a_row;
    const std::int64_t left = p.depth - k < kPanel ? p.depth - k : kPanel;
    for (std::int64_t step = 0; step < left; ++step) {
      F column[C];
      for (int c = 0; c < C; ++c) column[c] = load(b[c] + (k + step) * kPanel);
      for (int r = 0; r < R; ++r) {
        const F row = splat(a[r * p.a_row + step * p.a_step]);
        for (int c = 0; c < C; ++c) acc[r][c] += row * column[c];
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    float* out = p.c + (i + r) * p.c_row + j;
    for (int c = 0; c < C; ++c) {
      const F old = p.accumulate ? load(out + c * kLanes) : F{};
      store(out + c * kLanes, old + acc[r][c]);
    }
  }
}

/// The last rows, fewer than kRows: R = 1 .. kRows - 1.
template <int R, int C>
void product_tail(const Product& p, std::int64_t i, std::int64_t j, std::int64_t rows) {
  if constexpr (R > 0) {
    if (rows == R) {
      product_block<R, C>(p, i, j);
    } else {
      product_tail<R - 1, C>(p, i, j, rows);
    }
  }
}

template <int C>
void product_columns(const Product& p, std::int64_t j) {
  std::int64_t i = 0;
  for (; i + kRows <= p.m; i += kRows) product_block<kRows, C>(p, i, j);
  product_tail<kRows - 1, C>(p, i, j, p.m - i);
}

void product(const Product& p) {
  std::int64_t j = 0;
  for (; j + 2 * kLanes <= p.n; j += 2 * kLanes) product_columns<2>(p, j);
  for (; j < p.n; j += kLanes) product_columns<1>(p, j);
}

// ---- masks

/// The visible lanes of columns [j, j + kLanes) of a row.
inline I visible(const std::uint64_t* bits, std::int64_t j, std::int64_t keys) {
  std::uint32_t lanes = ~0U;
  if (bits != nullptr) lanes = static_cast<std::uint32_t>(bits[j / 64] >> (j % 64));
  if (keys - j < kLanes) lanes &= (1U << (keys > j ? keys - j : 0)) - 1U;
  return expand(lanes);
}

inline std::int64_t columns(std::int64_t keys) { return padded(keys); }

/// All columns of a row that need no mask.
inline std::int64_t unmasked(const std::uint64_t* bits, std::int64_t keys) {
  return bits != nullptr ? 0 : keys / kLanes * kLanes;
}

// ---- softmax

/// Scoring as two factors: x * inner, then through tanh, times outer; without a cap only inner.
struct Units {
  F inner;
  F outer;

  explicit Units(const Scoring& s)
      : inner(splat(s.cap == 0.0F ? s.scale * kLog2e : s.scale / s.cap)),
        outer(splat(s.cap * kLog2e)) {}
};

/// Scales, caps and masks one row in place; its maximum.
template <bool kCap>
float score_row(const SoftmaxTile& t, float* s, const std::uint64_t* bits) {
  const Units units(t.scoring);
  const std::int64_t free = unmasked(bits, t.keys);
  F top = splat(kMinusInfinity);
  for (std::int64_t j = 0; j < columns(t.keys); j += kLanes) {
    F x = load(s + j) * units.inner;
    if constexpr (kCap) x = units.outer * tanh(x);
    if (j >= free) x = select(visible(bits, j, t.keys), x, splat(kMinusInfinity));
    store(s + j, x);
    top = max(top, x);
  }
  return max_lanes(top);
}

void softmax(const SoftmaxTile& t) {
  for (std::int64_t i = 0; i < t.rows; ++i) {
    float* s = t.s + i * t.stride;
    const std::uint64_t* bits = t.bits == nullptr ? nullptr : t.bits + i * t.words;
    const bool cap = t.scoring.cap != 0.0F;
    const float top = cap ? score_row<true>(t, s, bits) : score_row<false>(t, s, bits);
    const float old = t.max[i];
    const float now = top > old ? top : old;
    const float against = now == kMinusInfinity ? 0.0F : now;  // merge.h: reference()
    const F shift = splat(against);
    F sum{};
    for (std::int64_t j = 0; j < columns(t.keys); j += kLanes) {
      const F weight = exp2(load(s + j) - shift);
      store(s + j, weight);
      sum += weight;
    }
    float factor = 1.0F;
    if (now != old) {
      F scaled = exp2(splat(old - against));
      factor = scaled[0];
    }
    t.factor[i] = factor;
    t.sum[i] = t.sum[i] * factor + sum_lanes(sum);
    t.max[i] = now;
  }
}

// ---- gradients

template <bool kCap>
void gradient_row(const GradientTile& t, std::int64_t i) {
  float* s = t.s + i * t.stride;
  float* dp = t.dp + i * t.stride;
  const std::uint64_t* bits = t.bits == nullptr ? nullptr : t.bits + i * t.words;
  const std::int64_t free = unmasked(bits, t.keys);
  const F lse = splat(t.lse[i]);
  const F delta = splat(t.delta[i]);
  const Units units(t.scoring);
  for (std::int64_t j = 0; j < columns(t.keys); j += kLanes) {
    F x = load(s + j) * units.inner;
    F slope = splat(1.0F);
    if constexpr (kCap) {
      const F u = tanh(x);
      x = units.outer * u;
      slope = 1.0F - u * u;
    }
    F p = exp2(x - lse);
    F ds = p * (load(dp + j) - delta);
    if constexpr (kCap) ds *= slope;
    if (j >= free) {
      const I mask = visible(bits, j, t.keys);
      p = select(mask, p, F{});
      ds = select(mask, ds, F{});
    }
    store(s + j, p);
    store(dp + j, ds);
  }
}

void gradient(const GradientTile& t) {
  for (std::int64_t i = 0; i < t.rows; ++i) {
    if (t.scoring.cap != 0.0F) {
      gradient_row<true>(t, i);
    } else {
      gradient_row<false>(t, i);
    }
  }
}

// ---- packing

inline F widen_lanes(Format format, const void* row, std::int64_t j) {
  switch (format) {
    case Format::kBFloat16: return widen_bf16(static_cast<const std::uint16_t*>(row) + j);
    case Format::kFloat16: return widen_f16(static_cast<const std::uint16_t*>(row) + j);
    case Format::kFloat32: break;
  }
  return load(static_cast<const float*>(row) + j);
}

/// Columns [j, j + kLanes) of a row that ends at `columns`.
F widen_some(Format format, const void* row, std::int64_t j, std::int64_t columns) {
  if (j + kLanes <= columns) return widen_lanes(format, row, j);
  const std::int64_t left = columns - j;
  if (format == Format::kFloat32) {
    float part[kLanes] = {};
    for (std::int64_t l = 0; l < left; ++l) part[l] = static_cast<const float*>(row)[j + l];
    return load(part);
  }
  std::uint16_t part[2 * kLanes] = {};  // twice: the compiler cannot rule out the float path
  for (std::int64_t l = 0; l < left; ++l) part[l] = static_cast<const std::uint16_t*>(row)[j + l];
  return widen_lanes(format, part, 0);
}

const void* row_of(const Widen& w, std::int64_t i) {
  const std::int64_t bytes = w.format == Format::kFloat32 ? 4 : 2;
  return static_cast<const char*>(w.src) + i * w.src_row * bytes;
}

bool widen(const Widen& w) {
  F poison{};  // x * 0 is NaN if and only if x is not finite
  for (std::int64_t i = 0; i < w.rows; ++i) {
    const void* row = row_of(w, i);
    for (std::int64_t j = 0; j < padded(w.columns); j += kLanes) {
      const F x = j < w.columns ? widen_some(w.format, row, j, w.columns) : F{};
      poison += x * 0.0F;
      store(w.dst + j / kPanel * w.capacity * kPanel + i * kPanel + j % kPanel, x);
    }
  }
  return sum_lanes(poison) == 0.0F;
}

bool widen_transposed(const Widen& w) {
  F poison{};
  float lanes[kLanes];
  for (std::int64_t i = 0; i < padded(w.rows); ++i) {
    float* column = w.dst + i / kPanel * w.capacity * kPanel + i % kPanel;
    if (i >= w.rows) {
      for (std::int64_t j = 0; j < w.columns; ++j) column[j * kPanel] = 0.0F;
      continue;
    }
    const void* row = row_of(w, i);
    for (std::int64_t j = 0; j < w.columns; j += kLanes) {
      const F x = widen_some(w.format, row, j, w.columns);
      poison += x * 0.0F;
      store(lanes, x);
      const std::int64_t left = w.columns - j < kLanes ? w.columns - j : kLanes;
      for (std::int64_t l = 0; l < left; ++l) column[(j + l) * kPanel] = lanes[l];
    }
  }
  return sum_lanes(poison) == 0.0F;
}

// ---- small things

void scale_rows(float* x, std::int64_t row, std::int64_t rows, std::int64_t n,
                const float* factor) {
  for (std::int64_t i = 0; i < rows; ++i) {
    if (factor[i] == 1.0F) continue;
    for (std::int64_t j = 0; j < n; j += kLanes) {
      store(x + i * row + j, load(x + i * row + j) * factor[i]);
    }
  }
}

void add(float* sum, const float* part, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(sum + i, load(sum + i) + load(part + i));
  for (; i < n; ++i) sum[i] += part[i];
}

void test_exp2(const float* x, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes) store(y + i, exp2(load(x + i)));
}

void test_tanh(const float* x, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes) store(y + i, tanh(load(x + i)));
}

}  // namespace

#define RINGATTN_JOIN2(a, b) a##b
#define RINGATTN_JOIN(a, b) RINGATTN_JOIN2(a, b)
#define RINGATTN_TEXT2(a) #a
#define RINGATTN_TEXT(a) RINGATTN_TEXT2(a)

extern const KernelTable RINGATTN_JOIN(kernels_, RINGATTN_ISA) = {RINGATTN_TEXT(RINGATTN_ISA),
                                                                  product,
                                                                  softmax,
                                                                  gradient,
                                                                  widen,
                                                                  widen_transposed,
                                                                  scale_rows,
                                                                  add,
                                                                  test_exp2,
                                                                  test_tanh};

}  // namespace ringattn::cpu
