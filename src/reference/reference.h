// SPDX-License-Identifier: Apache-2.0
// The contract as code: float64 accumulation, one pair at a time, no tiles in the arithmetic.
// Never fast; every other backend is measured against it.
#pragma once

#include "backend.h"

namespace ringattn {

class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  std::optional<std::string> why_not(const Problem& problem, const Options&) const override;
  TileShape tiles(const Problem& problem, const TileHint& hint, Pass pass) const override;
  DType sum_dtype() const override { return DType::kFloat64; }
  std::size_t state_bytes(const Plan& plan, Pass pass) const override;
  PassCounts forward(const ForwardStep& step) const override;
  PassCounts backward(const BackwardStep& step) const override;
  void accumulate(std::byte* sum, const std::byte* part, std::int64_t n, Executor& executor,
                  Stream stream) const override;
  void store(const std::byte* sum, TensorView out, Executor& executor,
             Stream stream) const override;
};

}  // namespace ringattn
