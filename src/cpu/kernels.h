// SPDX-License-Identifier: Apache-2.0
// The innermost layer: matrix products, the softmax pass, the gradient pass and packing, as one
// table per instruction set. Everything above it is plain C++; nothing in it knows of masks,
// heads or rings.
#pragma once

#include <cstdint>

namespace ringattn::cpu {

/// Rows of matrices are padded with zeros to a multiple of 16 columns.
inline constexpr std::int64_t kPanel = 16;

constexpr std::int64_t padded(std::int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

/// Floats from row to row of a matrix: an odd number of cache lines, so that rows do not fall into
/// the same cache sets.
constexpr std::int64_t row_stride(std::int64_t columns) {
  return ((columns + kPanel - 1) / kPanel | 1) * kPanel;
}

/// Memory that will be read soon: rows of `bytes`, `step` bytes apart.
struct Region {
  const void* first = nullptr;
  std::int64_t bytes = 0;
  std::int64_t rows = 0;
  std::int64_t step = 0;
};

enum class Format : std::uint8_t { kFloat32, kBFloat16, kFloat16 };

/// c[i][j] (+)= sum over k of a(i, k) * b[k][j], for i < m, j < n (a multiple of 16), k < depth.
/// a(i, k) = a[i * a_row + k], transposed a[k * a_row + i]. The order of additions depends on the
/// shape alone. With `pairs` an element of a or b is a word of two bfloat16 values, whose products
/// are both added: neighbours in the direction of k, so that depth is half as many words. With
/// `split` too, a(i, k) is the sum of two words, a[i * a_row + 2 k] and the next one; not
/// transposed.
struct Product {
  bool pairs;
  const float* a;
  std::int64_t a_row;
  bool a_transposed;
  const float* b;
  std::int64_t b_row;
  float* c;
  std::int64_t c_row;
  std::int64_t m, n, depth;
  bool accumulate;
  Region next[2] = {};  // to be brought nearer meanwhile
  bool split = false;
};

/// How products of queries and keys become scores in units of log2. The scale is applied to the
/// product, not to the queries: sums of 16-bit products are often exact, scaled queries are not.
struct Scoring {
  float scale;
  float cap;  // 0: none
};

/// A tile of scores on its way to weights.
struct SoftmaxTile {
  bool pairs;  // out: weights are words: of bfloat16 values, in the first half of each row, or
               // with `split` of the two parts of each, in turn
  float* s;    // [rows][stride]; in: products; out: weights, 0 where masked or padding
  std::int64_t stride;
  std::int64_t rows, keys;    // keys < padded(keys): the rest is masked
  const std::uint64_t* bits;  // [rows][words], or null: all visible
  std::int64_t words;
  Scoring scoring;
  float* max;      // [rows], log2 units, in and out
  float* sum;      // [rows], in and out
  float* factor;   // [rows], out: what the accumulators are to be multiplied by
  float* rounded;  // pairs: [rows], in and out: the sum of the weights as they are rounded; with
                   // `split` the same as `sum`
  bool split = false;
};

/// Rows of a tile, at most.
inline constexpr std::int64_t kMostRows = 128;

/// What a row's accumulators are multiplied by in the end, and its lse, where there is no sink:
/// 1 / weights and (max + log2 sum) ln 2.
struct Finish {
  const float* max;  // log2 units
  const float* sum;
  std::int64_t rows;
  float* factor;         // out
  float* lse;            // out
  const float* weights;  // what is divided by: sum, or sums of rounded weights
};

/// Was a tile done? Not tried, or tried in vain: some reference was too small, `s` is spoilt.
enum class Trial : std::uint8_t { kDone, kNot, kSpoilt };

/// The backward's elementwise pass: P = exp2(s - lse), dS = P * (dP - delta) * slope.
struct GradientTile {
  bool pairs;
  float* s;   // in: products; out: P. With `pairs` row 2i holds words of P of rows 2i and 2i + 1,
              // and row 2i + 1, even if there is no such row, those of dS
  float* dp;  // in: dO V^T; out: dS. With `pairs` as the left side of a product that is `split`
  std::int64_t stride;
  std::int64_t rows, keys;
  const std::uint64_t* bits;
  std::int64_t words;
  Scoring scoring;
  const float* lse;    // [rows], log2 units, +inf: the row has no weight anywhere
  const float* delta;  // [rows]
};

/// Rows of a tensor to a matrix: dst[i][j] = src(i, j), rows i < `rows`, columns j < `columns`,
/// zeros up to padded(columns). With `pairs` (kBFloat16 only) an element is the word of columns 2j
/// and 2j + 1.
struct Widen {
  bool pairs;
  Format format;
  const void* src;
  std::int64_t src_row;  // elements between rows
  std::int64_t rows, columns;
  float* dst;
  std::int64_t dst_row;
};

/// dst[i][j] = x[i][j] * factor[i * factor_step], rounded once, i < rows, j < n.
struct Narrow {
  Format format;
  const float* x;
  std::int64_t x_row;
  std::int64_t rows, n;
  const float* factor;
  std::int64_t factor_step;  // 0: the same for all
  void* dst;
  std::int64_t dst_row;  // elements between rows
};

/// dot[i] = sum over j < n of a[i][j] * b[i][j], in float64; zero[i]: all a[i][j] are zeros.
struct RowDots {
  Format a_format;
  const void* a;
  std::int64_t a_row;  // elements between rows
  Format b_format;
  const void* b;
  std::int64_t b_row;
  std::int64_t rows, n;
  double* dot;
  bool* zero;
};

struct KernelTable {
  const char* isa;
  void (*product)(const Product&);
  void (*softmax)(const SoftmaxTile&);
  /// The same without looking for all maxima, where there is no mask: a row keeps its reference, or
  /// takes the largest of its first scores. What is not done changes nothing else but `s` and
  /// `factor`.
  Trial (*softmax_again)(const SoftmaxTile&);
  /// False: some sum is 0, subnormal or not finite, and nothing is done.
  bool (*finish)(const Finish&);
  void (*gradient)(const GradientTile&);
  /// Returns false if any element is not finite.
  bool (*widen)(const Widen&);
  /// The same, transposed: dst[j][i], as the right side of scores; zeros up to padded(rows).
  bool (*widen_transposed)(const Widen&);
  /// dst[i][j] = the word of src(2i, j) and src(2i + 1, j), bfloat16 only. Null: this instruction
  /// set has no dot products of pairs, and nothing here takes `pairs`.
  bool (*pair_rows)(const Widen&);
  void (*narrow)(const Narrow&);
  void (*dot_rows)(const RowDots&);
  /// x[i][j] *= factor[i], j < n (a multiple of 16).
  void (*scale_rows)(float* x, std::int64_t row, std::int64_t rows, std::int64_t n,
                     const float* factor);
  void (*add)(float* sum, const float* part, std::int64_t n);
  /// For tests: y[i] = exp2(x[i]) and tanh(x[i]) as the passes compute them, n a multiple of 16.
  void (*exp2)(const float* x, float* y, std::int64_t n);
  void (*tanh)(const float* x, float* y, std::int64_t n);
};

extern const KernelTable kernels_baseline;
#if defined(RINGATTN_HAVE_X86)
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
extern const KernelTable kernels_avx512_bf16;
#endif

}  // namespace ringattn::cpu
