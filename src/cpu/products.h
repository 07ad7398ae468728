// SPDX-License-Identifier: Apache-2.0
// Matrix products: kRows x kVectors accumulators in registers, the right side's columns in the
// first-level cache, the left side broadcast from memory. For kernels.cpp alone.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

// NOLINTBEGIN(google-build-namespaces, misc-definitions-in-headers)
namespace ringattn::cpu {
namespace {

/// Rows of the right side that one sweep over the left side uses: 128 x 64 floats are 32 KiB.
constexpr std::int64_t kDepth = 128;

/// How an element of the left side, which may be in parts, meets one of the right side.
struct Floats {
  static constexpr int kParts = 1;
  static F add(F sum, F a, F b) { return multiply_add(sum, a, b); }
};
#if defined(RINGATTN_PAIRS)
template <int kWords>
struct Pairs {
  static constexpr int kParts = kWords;
  static F add(F sum, F a, F b) { return dot(sum, a, b); }
};
#endif

/// R rows times C vectors of columns. Loops over registers are unrolled by order: a compiler that
/// leaves one of them keeps the accumulators in memory.
template <class Element, int R, int C, bool kTransposed>
[[gnu::always_inline]] inline void product_block(const Product& p, std::int64_t i, std::int64_t j) {
  F acc[R][C];
  const float* a[R];  // rows of the left side; transposed, where its rows are columns
  const std::int64_t a_row = p.a_row;
  const std::int64_t a_step = kTransposed ? a_row : Element::kParts;
  const std::int64_t b_row = p.b_row;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = kTransposed ? p.a + i + r : p.a + (i + r) * a_row;
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = F{};
  }
  const float* b = p.b + j;
  const std::int64_t depth = p.depth;
  const auto step = [&](std::int64_t at) {
    F column[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) column[c] = load(b + c * kLanes);
#pragma GCC unroll 2
    for (int part = 0; part < Element::kParts; ++part) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const F row = splat(kTransposed ? a[0][at + r] : a[r][at + part]);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) acc[r][c] = Element::add(acc[r][c], row, column[c]);
      }
    }
    b += b_row;
  };
  std::int64_t k = 0;
  std::int64_t at = 0;
  for (; k + 4 <= depth; k += 4, at += 4 * a_step) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) step(at + u * a_step);
  }
  for (; k < depth; ++k, at += a_step) step(at);
  float* out = p.c + i * p.c_row + j;
  const std::int64_t c_row = p.c_row;
  if (p.accumulate) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        acc[r][c] += load(out + r * c_row + c * kLanes);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(out + r * c_row + c * kLanes, acc[r][c]);
  }
}

/// The last rows, fewer than kRows: R = 1 .. kRows - 1.
template <class Element, int R, int C, bool kTransposed>
void product_tail(const Product& p, std::int64_t i, std::int64_t j, std::int64_t rows) {
  if constexpr (R > 0) {
    if (rows == R) {
      product_block<Element, R, C, kTransposed>(p, i, j);
    } else {
      product_tail<Element, R - 1, C, kTransposed>(p, i, j, rows);
    }
  }
}

/// Memory that is read after the product, asked for a few lines at a time.
struct Ahead {
  static constexpr std::int64_t kLine = 64;
  Region left;
  Region after;
  std::int64_t at = 0;  // of the row
  std::int64_t lines;   // per block of rows

  static std::int64_t lines_of(const Region& r) { return (r.bytes + kLine - 1) / kLine * r.rows; }

  explicit Ahead(const Product& p) : left(p.next[0]), after(p.next[1]) {
    const std::int64_t blocks = (p.m + kRows - 1) / kRows * ((p.n - 1) / (kVectors * kLanes) + 1) *
                                ((p.depth - 1) / kDepth + 1);
    lines = (lines_of(left) + lines_of(after)) / (blocks > 0 ? blocks : 1) + 1;
  }

  void fetch() {
    for (std::int64_t n = 0; n < lines; ++n) {
      if (left.rows == 0) {
        if (after.rows == 0) return;
        left = after;
        after.rows = 0;
      }
      __builtin_prefetch(static_cast<const char*>(left.first) + at, 0, 2);
      at += kLine;
      if (at < left.bytes) continue;
      at = 0;
      left.first = static_cast<const char*>(left.first) + left.step;
      --left.rows;
    }
  }
};

/// All rows against columns [j, j + C vectors).
template <class Element, int C, bool kTransposed>
void product_columns(const Product& p, Ahead& ahead, std::int64_t j) {
  std::int64_t i = 0;
  for (; i + kRows <= p.m; i += kRows) {
    ahead.fetch();
    product_block<Element, kRows, C, kTransposed>(p, i, j);
  }
  product_tail<Element, kRows - 1, C, kTransposed>(p, i, j, p.m - i);
}

/// The last columns, fewer than kVectors vectors.
template <class Element, int C, bool kTransposed>
void product_edge(const Product& p, Ahead& ahead, std::int64_t j) {
  if constexpr (C > 0) {
    if (p.n - j == C * kLanes) {
      product_columns<Element, C, kTransposed>(p, ahead, j);
    } else {
      product_edge<Element, C - 1, kTransposed>(p, ahead, j);
    }
  }
}

template <class Element, bool kTransposed>
void product_slice(const Product& p, Ahead& ahead) {
  std::int64_t j = 0;
  for (; j + kVectors * kLanes <= p.n; j += kVectors * kLanes) {
    product_columns<Element, kVectors, kTransposed>(p, ahead, j);
  }
  product_edge<Element, kVectors - 1, kTransposed>(p, ahead, j);
}

template <class Element>
void product_of(const Product& p) {
  Product slice = p;
  Ahead ahead(p);
  for (std::int64_t k = 0; k < p.depth || k == 0; k += kDepth) {
    slice.depth = p.depth - k < kDepth ? p.depth - k : kDepth;
    if constexpr (Element::kParts == 1) {
      if (p.a_transposed) {
        product_slice<Element, true>(slice, ahead);
      } else {
        product_slice<Element, false>(slice, ahead);
      }
    } else {
      product_slice<Element, false>(slice, ahead);
    }
    slice.a += kDepth * (p.a_transposed ? p.a_row : Element::kParts);
    slice.b += kDepth * p.b_row;
    slice.accumulate = true;
  }
}

void product(const Product& p) {
#if defined(RINGATTN_PAIRS)
  if (p.pairs && p.split) return product_of<Pairs<2>>(p);
  if (p.pairs) return product_of<Pairs<1>>(p);
#endif
  product_of<Floats>(p);
}

}  // namespace
}  // namespace ringattn::cpu
// NOLINTEND(google-build-namespaces, misc-definitions-in-headers)
