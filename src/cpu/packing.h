// SPDX-License-Identifier: Apache-2.0
// Rows of a tensor to float32 matrices, and back. For kernels.cpp alone.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

// NOLINTBEGIN(google-build-namespaces, misc-definitions-in-headers)
namespace ringattn::cpu {
namespace {

template <Format kFormat>
inline F widen_lanes(const void* row, std::int64_t j) {
  if constexpr (kFormat == Format::kBFloat16) {
    return widen_bf16(static_cast<const std::uint16_t*>(row) + j);
  } else if constexpr (kFormat == Format::kFloat16) {
    return widen_f16(static_cast<const std::uint16_t*>(row) + j);
  } else {
    return load(static_cast<const float*>(row) + j);
  }
}

/// Columns [j, j + kLanes) of a row that ends at `columns`; zeros after it.
template <Format kFormat>
inline F widen_some(const void* row, std::int64_t j, std::int64_t columns) {
  if (j + kLanes <= columns) return widen_lanes<kFormat>(row, j);
  if (j >= columns) return F{};
  using Element = std::conditional_t<kFormat == Format::kFloat32, float, std::uint16_t>;
  Element part[kLanes] = {};
  for (std::int64_t l = 0; l < columns - j; ++l) part[l] = static_cast<const Element*>(row)[j + l];
  return widen_lanes<kFormat>(part, 0);
}

template <Format kFormat>
inline const void* row_of(const Widen& w, std::int64_t i) {
  constexpr std::int64_t kBytesEach = kFormat == Format::kFloat32 ? 4 : 2;
  return static_cast<const char*>(w.src) + i * w.src_row * kBytesEach;
}

/// Rows of a tensor lie too far apart for the hardware to foresee them: asks for `count` of them.
template <Format kFormat>
inline void ask_for_rows(const Widen& w, std::int64_t first, std::int64_t count) {
  constexpr std::int64_t kLine = kFormat == Format::kFloat32 ? 16 : 32;  // elements
  const std::int64_t end = first + count < w.rows ? first + count : w.rows;
  for (std::int64_t i = first; i < end; ++i) {
    const auto* row = static_cast<const char*>(row_of<kFormat>(w, i));
    for (std::int64_t j = 0; j < w.columns; j += kLine) __builtin_prefetch(row + j / kLine * 64);
  }
}

/// Rows that are asked for ahead.
constexpr std::int64_t kAhead = 8;

/// All zeros if and only if x is finite: to be gathered by or, which waits for one cycle where a
/// sum waits for four.
inline I poison_of(F x) { return as_int(x - x); }  // NOLINT(misc-redundant-expression)

// What to pack comes by value: stores of floats would make the compiler read it again.

template <Format kFormat>
bool widen_rows(const Widen w) {
  const std::int64_t whole = w.columns / kLanes * kLanes;
  I poison{};
  ask_for_rows<kFormat>(w, 0, kAhead);
  for (std::int64_t i = 0; i < w.rows; ++i) {
    ask_for_rows<kFormat>(w, i + kAhead, 1);
    const void* row = row_of<kFormat>(w, i);
    float* dst = w.dst + i * w.dst_row;
    for (std::int64_t j = 0; j < whole; j += kLanes) {
      const F x = widen_lanes<kFormat>(row, j);
      poison |= poison_of(x);
      store(dst + j, x);
    }
    for (std::int64_t j = whole; j < padded(w.columns); j += kLanes) {
      const F x = widen_some<kFormat>(row, j, w.columns);
      poison |= poison_of(x);
      store(dst + j, x);
    }
  }
  return !any_bit(poison);
}

/// kLanes rows from row i and columns from column j, transposed; kWhole: there are as many.
template <Format kFormat, bool kWhole>
[[gnu::always_inline]] inline void widen_block(const Widen& w, std::int64_t i, std::int64_t j,
                                               I& poison) {
  F block[kLanes];
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) {
    if constexpr (kWhole) {
      block[l] = widen_lanes<kFormat>(row_of<kFormat>(w, i + l), j);
    } else {
      block[l] =
          i + l < w.rows ? widen_some<kFormat>(row_of<kFormat>(w, i + l), j, w.columns) : F{};
    }
    poison |= poison_of(block[l]);
  }
  transpose(block);
  const std::int64_t left = kWhole || w.columns - j >= kLanes ? kLanes : w.columns - j;
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) {
    if (l < left) store(w.dst + (j + l) * w.dst_row + i, block[l]);
  }
}

template <Format kFormat>
bool widen_columns(const Widen w) {
  I poison{};
  ask_for_rows<kFormat>(w, 0, kLanes);
  for (std::int64_t i = 0; i < padded(w.rows); i += kLanes) {
    ask_for_rows<kFormat>(w, i + kLanes, kLanes);
    std::int64_t j = 0;
    if (i + kLanes <= w.rows) {
      for (; j + kLanes <= w.columns; j += kLanes) widen_block<kFormat, true>(w, i, j, poison);
    }
    for (; j < w.columns; j += kLanes) widen_block<kFormat, false>(w, i, j, poison);
  }
  return !any_bit(poison);
}

#if defined(RINGATTN_PAIRS)
/// Words [j, j + kLanes) of a row of `columns` bfloat16 values; zeros after its end.
inline F some_words(const Widen& w, std::int64_t i, std::int64_t j) {
  const auto* row = static_cast<const std::uint16_t*>(w.src) + i * w.src_row + 2 * j;
  const std::int64_t left = w.columns - 2 * j;
  if (left >= 2 * kLanes) return load(reinterpret_cast<const float*>(row));
  std::uint16_t part[2 * kLanes] = {};
  for (std::int64_t l = 0; l < left; ++l) part[l] = row[l];
  return load(reinterpret_cast<const float*>(part));
}

/// poison_of() for both halves of words.
inline I poison_of_words(F words) {
  const I bits = as_int(words);
  return poison_of(as_float(bits << 16)) | poison_of(as_float(bits & splat_int(-65536)));
}

bool pack_words(const Widen& w) {
  I poison{};
  for (std::int64_t i = 0; i < w.rows; ++i) {
    ask_for_rows<Format::kBFloat16>(w, i + kAhead, 1);
    for (std::int64_t j = 0; j < padded((w.columns + 1) / 2); j += kLanes) {
      const F words = some_words(w, i, j);
      poison |= poison_of_words(words);
      store(w.dst + i * w.dst_row + j, words);
    }
  }
  return !any_bit(poison);
}

bool pack_words_transposed(const Widen& w) {
  const std::int64_t words = (w.columns + 1) / 2;
  I poison{};
  for (std::int64_t i = 0; i < padded(w.rows); i += kLanes) {
    ask_for_rows<Format::kBFloat16>(w, i + kLanes, kLanes);
    for (std::int64_t j = 0; j < words; j += kLanes) {
      F block[kLanes];
      for (int l = 0; l < kLanes; ++l) {
        block[l] = i + l < w.rows ? some_words(w, i + l, j) : F{};
        poison |= poison_of_words(block[l]);
      }
      transpose(block);
      const std::int64_t left = words - j < kLanes ? words - j : kLanes;
      for (std::int64_t l = 0; l < left; ++l) store(w.dst + (j + l) * w.dst_row + i, block[l]);
    }
  }
  return !any_bit(poison);
}

bool pair_rows(const Widen& w) {
  I poison{};
  for (std::int64_t i = 0; i < w.rows; i += 2) {
    ask_for_rows<Format::kBFloat16>(w, i + kAhead, 2);
    const void* even = row_of<Format::kBFloat16>(w, i);
    const void* odd = row_of<Format::kBFloat16>(w, i + 1);
    for (std::int64_t j = 0; j < padded(w.columns); j += kLanes) {
      const F low = widen_some<Format::kBFloat16>(even, j, w.columns);
      const F high = i + 1 < w.rows ? widen_some<Format::kBFloat16>(odd, j, w.columns) : F{};
      poison |= poison_of(low) | poison_of(high);
      const U bits = reinterpret_cast<U>(low) >> 16;
      store(w.dst + i / 2 * w.dst_row + j, as_float(as_int(high) | reinterpret_cast<I>(bits)));
    }
  }
  return !any_bit(poison);
}
#else
constexpr bool (*pair_rows)(const Widen&) = nullptr;
#endif

bool widen(const Widen& w) {
#if defined(RINGATTN_PAIRS)
  if (w.pairs) return pack_words(w);
#endif
  switch (w.format) {
    case Format::kBFloat16: return widen_rows<Format::kBFloat16>(w);
    case Format::kFloat16: return widen_rows<Format::kFloat16>(w);
    case Format::kFloat32: break;
  }
  return widen_rows<Format::kFloat32>(w);
}

bool widen_transposed(const Widen& w) {
#if defined(RINGATTN_PAIRS)
  if (w.pairs) return pack_words_transposed(w);
#endif
  switch (w.format) {
    case Format::kBFloat16: return widen_columns<Format::kBFloat16>(w);
    case Format::kFloat16: return widen_columns<Format::kFloat16>(w);
    case Format::kFloat32: break;
  }
  return widen_columns<Format::kFloat32>(w);
}

template <Format kFormat>
void narrow_rows(const Narrow& to) {
  using Element = std::conditional_t<kFormat == Format::kFloat32, float, std::uint16_t>;
  for (std::int64_t i = 0; i < to.rows; ++i) {
    const float* row = to.x + i * to.x_row;
    const float factor = to.factor[i * to.factor_step];
    auto* dst = static_cast<Element*>(to.dst) + i * to.dst_row;
    for (std::int64_t j = 0; j < to.n; j += kLanes) {
      const F x = load_some(row + j, to.n - j) * factor;
      if constexpr (kFormat == Format::kFloat32) {
        store_some(dst + j, x, to.n - j);
      } else {
        store_some(dst + j, kFormat == Format::kBFloat16 ? narrow_bf16(x) : narrow_f16(x),
                   to.n - j);
      }
    }
  }
}

void narrow(const Narrow& to) {
  switch (to.format) {
    case Format::kBFloat16: return narrow_rows<Format::kBFloat16>(to);
    case Format::kFloat16: return narrow_rows<Format::kFloat16>(to);
    case Format::kFloat32: break;
  }
  narrow_rows<Format::kFloat32>(to);
}

template <Format kA, Format kB>
void dot_rows_of(const RowDots& t) {
  const Widen a{false, kA, t.a, t.a_row, t.rows, t.n, nullptr, 0};
  const Widen b{false, kB, t.b, t.b_row, t.rows, t.n, nullptr, 0};
  for (std::int64_t i = 0; i < t.rows; ++i) {
    ask_for_rows<kA>(a, i + kAhead, 1);
    ask_for_rows<kB>(b, i + kAhead, 1);
    D sums[2] = {};
    I seen{};
    for (std::int64_t j = 0; j < t.n; j += kLanes) {
      const F x = widen_some<kA>(row_of<kA>(a, i), j, t.n);
      const F y = widen_some<kB>(row_of<kB>(b, i), j, t.n);
      seen |= as_int(x) & ~splat_int(INT32_MIN);
      sums[0] += lower(x) * lower(y);
      sums[1] += upper(x) * upper(y);
    }
    sums[0] += sums[1];
    double dot = 0.0;
    for (int l = 0; l < kLanes / 2; ++l) dot += sums[0][l];
    t.dot[i] = dot;
    t.zero[i] = !any_bit(seen);
  }
}

template <Format kA>
void dot_rows_with(const RowDots& t) {
  switch (t.b_format) {
    case Format::kBFloat16: return dot_rows_of<kA, Format::kBFloat16>(t);
    case Format::kFloat16: return dot_rows_of<kA, Format::kFloat16>(t);
    case Format::kFloat32: break;
  }
  dot_rows_of<kA, Format::kFloat32>(t);
}

void dot_rows(const RowDots& t) {
  switch (t.a_format) {
    case Format::kBFloat16: return dot_rows_with<Format::kBFloat16>(t);
    case Format::kFloat16: return dot_rows_with<Format::kFloat16>(t);
    case Format::kFloat32: break;
  }
  dot_rows_with<Format::kFloat32>(t);
}

}  // namespace
}  // namespace ringattn::cpu
// NOLINTEND(google-build-namespaces, misc-definitions-in-headers)
