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

/// Whether all of a packed matrix is finite, by its `poison`; if not, every NaN becomes the one
/// that exp2 keeps.
bool is_finite(F poison, float* x, std::int64_t row, std::int64_t rows, std::int64_t columns) {
  if (sum_lanes(poison) == 0.0F) return true;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      const F lanes = load(x + i * row + j);
      store(x + i * row + j, select(is_nan(lanes), splat(__builtin_nanf("")), lanes));
    }
  }
  return false;
}

template <Format kFormat>
bool widen_rows(const Widen& w) {
  F poison{};  // x * 0 is NaN if and only if x is not finite
  ask_for_rows<kFormat>(w, 0, kAhead);
  for (std::int64_t i = 0; i < w.rows; ++i) {
    ask_for_rows<kFormat>(w, i + kAhead, 1);
    const void* row = row_of<kFormat>(w, i);
    for (std::int64_t j = 0; j < padded(w.columns); j += kLanes) {
      const F x = widen_some<kFormat>(row, j, w.columns);
      poison += x * 0.0F;
      store(w.dst + i * w.dst_row + j, x);
    }
  }
  return is_finite(poison, w.dst, w.dst_row, w.rows, padded(w.columns));
}

template <Format kFormat>
bool widen_columns(const Widen& w) {
  F poison{};
  ask_for_rows<kFormat>(w, 0, kLanes);
  for (std::int64_t i = 0; i < padded(w.rows); i += kLanes) {
    ask_for_rows<kFormat>(w, i + kLanes, kLanes);
    for (std::int64_t j = 0; j < w.columns; j += kLanes) {
      F block[kLanes];
      for (int l = 0; l < kLanes; ++l) {
        block[l] = F{};
        if (i + l < w.rows) block[l] = widen_some<kFormat>(row_of<kFormat>(w, i + l), j, w.columns);
        poison += block[l] * 0.0F;
      }
      transpose(block);
      const std::int64_t left = w.columns - j < kLanes ? w.columns - j : kLanes;
      for (std::int64_t l = 0; l < left; ++l) store(w.dst + (j + l) * w.dst_row + i, block[l]);
    }
  }
  return is_finite(poison, w.dst, w.dst_row, w.columns, padded(w.rows));
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

/// NaN if and only if half of some word is not finite.
inline F poison_of(F words) {
  const I bits = as_int(words);
  return as_float(bits << 16) * 0.0F + as_float(bits & splat_int(-65536)) * 0.0F;
}

bool pack_words(const Widen& w) {
  F poison{};
  for (std::int64_t i = 0; i < w.rows; ++i) {
    ask_for_rows<Format::kBFloat16>(w, i + kAhead, 1);
    for (std::int64_t j = 0; j < padded((w.columns + 1) / 2); j += kLanes) {
      const F words = some_words(w, i, j);
      poison += poison_of(words);
      store(w.dst + i * w.dst_row + j, words);
    }
  }
  return sum_lanes(poison) == 0.0F;
}

bool pack_words_transposed(const Widen& w) {
  const std::int64_t words = (w.columns + 1) / 2;
  F poison{};
  for (std::int64_t i = 0; i < padded(w.rows); i += kLanes) {
    ask_for_rows<Format::kBFloat16>(w, i + kLanes, kLanes);
    for (std::int64_t j = 0; j < words; j += kLanes) {
      F block[kLanes];
      for (int l = 0; l < kLanes; ++l) {
        block[l] = i + l < w.rows ? some_words(w, i + l, j) : F{};
        poison += poison_of(block[l]);
      }
      transpose(block);
      const std::int64_t left = words - j < kLanes ? words - j : kLanes;
      for (std::int64_t l = 0; l < left; ++l) store(w.dst + (j + l) * w.dst_row + i, block[l]);
    }
  }
  return sum_lanes(poison) == 0.0F;
}

bool pair_rows(const Widen& w) {
  F poison{};
  for (std::int64_t i = 0; i < w.rows; i += 2) {
    ask_for_rows<Format::kBFloat16>(w, i + kAhead, 2);
    const void* even = row_of<Format::kBFloat16>(w, i);
    const void* odd = row_of<Format::kBFloat16>(w, i + 1);
    for (std::int64_t j = 0; j < padded(w.columns); j += kLanes) {
      const F low = widen_some<Format::kBFloat16>(even, j, w.columns);
      const F high = i + 1 < w.rows ? widen_some<Format::kBFloat16>(odd, j, w.columns) : F{};
      poison += low * 0.0F + high * 0.0F;
      const U bits = reinterpret_cast<U>(low) >> 16;
      store(w.dst + i / 2 * w.dst_row + j, as_float(as_int(high) | reinterpret_cast<I>(bits)));
    }
  }
  return sum_lanes(poison) == 0.0F;
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

}  // namespace
}  // namespace ringattn::cpu
// NOLINTEND(google-build-namespaces, misc-definitions-in-headers)
