// SPDX-License-Identifier: Apache-2.0
// The CPU backend: tiles of queries against tiles of keys, online softmax, float32 state.
// Results have the same bits for any number of threads.
#pragma once

#include "backend.h"
#include "cpu/kernels.h"
#include "dtype.h"

namespace ringattn {

class CpuBackend final : public Backend {
 public:
  std::string_view name() const override { return "cpu"; }
  std::optional<std::string> why_not(const Problem& problem, const Options&) const override;
  TileShape tiles(const Problem& problem, const TileHint& hint, Pass pass) const override;
  std::vector<std::string> instruction_sets() const override;
  std::size_t workspace_bytes(const Plan& plan, Pass pass) const override;
  std::size_t state_bytes(const Plan& plan, Pass pass) const override;
  std::size_t shared_block_bytes(const Plan& plan, Pass pass) const override;
  void share_block(const StepContext& step, Pass pass, std::span<std::byte> to) const override;
  PassCounts forward(const ForwardStep& step) const override;
  PassCounts backward(const BackwardStep& step) const override;
  void accumulate(std::byte* sum, const std::byte* part, std::int64_t n, Executor& executor,
                  Stream stream) const override;
  void store(const std::byte* sum, TensorView out, Executor& executor,
             Stream stream) const override;
};

namespace cpu {

/// The table for "cpu:<isa>", or the best that this machine runs. Null: not here.
const KernelTable* kernels(std::string_view backend_option);

/// Names of the instruction sets that this build has and this machine runs, best first.
std::vector<std::string> instruction_sets();

std::size_t forward_workspace(const Plan& plan);
std::size_t backward_workspace(const Plan& plan);
std::size_t forward_state(const Plan& plan);
std::size_t backward_state(const Plan& plan);
PassCounts forward(const ForwardStep& step);
PassCounts backward(const BackwardStep& step);

/// How many threads a plan's executor has.
int threads(const Plan& plan);

/// How a plan's operands are packed: float32, or words of two bfloat16 values where the instruction
/// set has dot products of them. Everywhere below, matrices are of words if they are pairs.
struct Operands {
  const KernelTable& kernels;
  Format format;
  bool pairs;

  explicit Operands(const Plan& plan);

  /// Elements of a row or column of n values.
  std::int64_t words(std::int64_t n) const { return pairs ? (n + 1) / 2 : n; }

  /// Rows to a matrix that multiplies from the left, from the right by its transpose, or from the
  /// right. False: something is not finite.
  bool left(Widen w) const { return w.pairs = pairs, kernels.widen(w); }
  bool right_transposed(Widen w) const { return w.pairs = pairs, kernels.widen_transposed(w); }
  bool right(Widen w) const { return pairs ? kernels.pair_rows(w) : kernels.widen(w); }
};

Format format_of(DType dtype);

/// Where element `at` of a view lies.
inline std::byte* element(const TensorView& v, std::int64_t at) {
  return static_cast<std::byte*>(v.data) + at * size_of(v.dtype);
}

/// Rows of one batch row and head, from `row` on, where a tensor keeps them.
template <class View>
Region rows_of(const View& v, std::int64_t b, std::int64_t row, std::int64_t h, std::int64_t rows) {
  const std::int64_t size = size_of(v.dtype);
  return {static_cast<const std::byte*>(v.data) + offset(v, b, row, h) * size, v.dim(3) * size,
          rows, v.stride(1) * size};
}

/// Rows of a masked tile that are worked on together: each group goes as far as its own keys.
inline constexpr std::int64_t kMaskedRows = 24;

/// The keys that any of these rows of a masked tile sees: from a multiple of 64 to the last one.
Range visible_keys(const TileBits& bits, Range rows);

/// Products whose right side has a NaN or inf. In masked tiles it must reach no row that does not
/// see it: only visible pairs are touched. A weight in two parts, one of them 0, would make NaN of
/// inf: it is added up first. out[i] += sum over visible j of w[i][j] * x[j];
/// transposed: out[j] += sum over visible i of w[i][j] * x[i].
struct CarefulProduct {
  bool pairs;  // w and x are words, as the passes and KernelTable::pair_rows leave them
  bool split;  // as Product
  const float* w;
  std::int64_t w_row;
  const std::uint64_t* bits;  // null: all are visible
  std::int64_t words;
  std::int64_t rows, keys;
  const float* x;
  std::int64_t x_row, columns;
  float* out;
  std::int64_t out_row;
};
void careful_product(const CarefulProduct& p);
void careful_product_transposed(const CarefulProduct& p);

}  // namespace cpu
}  // namespace ringattn
