// SPDX-License-Identifier: Apache-2.0
// The CUDA backend: enqueues kernels on the caller's stream; never waits and never allocates.
#pragma once

#include "backend.h"

namespace ringattn {

class CudaBackend final : public Backend {
 public:
  std::string_view name() const override { return "cuda"; }
  const Memory& memory() const override;
  std::optional<std::string> why_absent() const override;
  std::optional<std::string> why_not(const Problem& problem, const Options&) const override;
  TileShape tiles(const Problem& problem, const TileHint& hint, Pass pass) const override;
  std::vector<std::string> instruction_sets() const override;  // the GPU's
  std::size_t workspace_bytes(const Plan& plan, Pass pass) const override;
  bool rounds_gradients() const override { return true; }
  PassCounts forward(const ForwardStep& step) const override;
  PassCounts backward(const BackwardStep& step) const override;
  void accumulate(std::byte* sum, const std::byte* part, std::int64_t n, Executor& executor,
                  Stream stream) const override;
  void store(const std::byte* sum, TensorView out, Executor& executor,
             Stream stream) const override;
};

}  // namespace ringattn
