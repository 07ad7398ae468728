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

/// Whether all of a packed matrix is finite, by its `poison`; if not, every NaN becomes the one that
/// exp2 keeps.
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
  for (std::int64_t i = 0; i < w.rows; ++i) {
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
  for (std::int64_t i = 0; i < padded(w.rows); i += kLanes) {
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

bool widen(const Widen& w) {
  switch (w.format) {
    case Format::kBFloat16: return widen_rows<Format::kBFloat16>(w);
    case Format::kFloat16: return widen_rows<Format::kFloat16>(w);
    case Format::kFloat32: break;
  }
  return widen_rows<Format::kFloat32>(w);
}

bool widen_transposed(const Widen& w) {
  switch (w.format) {
    case Format::kBFloat16: return widen_columns<Format::kBFloat16>(w);
    case Format::kFloat16: return widen_columns<Format::kFloat16>(w);
    case Format::kFloat32: break;
  }
  return widen_columns<Format::kFloat32>(w);
}

}  // namespace
}  // namespace ringattn::cpu
// NOLINTEND(google-build-namespaces, misc-definitions-in-headers)
