// SPDX-License-Identifier: Apache-2.0
// One rank of a RingJob: its shards, its results, its attention. Internal to ring_run.cpp.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "support/local_tensor.h"
#include "support/ring_run.h"

namespace ringattn::support {

struct RingJob::Rank {
  int rank = 0;
  LocalTensor query, key, value, q_ids, kv_ids, q_positions, kv_positions, sinks, dout, dlse;
  LocalTensor out, lse, dquery, dkey, dvalue, dsinks;
  std::unique_ptr<RingAttention> attention;
  PassCounts forward, backward;
  Stream stream;

  ForwardArgs forward_args();
  BackwardArgs backward_args();
  /// Calls f for the outputs, and before them for the inputs too.
  void for_tensors(bool outputs, const std::function<void(LocalTensor&)>& f);
  void cut_inputs(const RingInputs& in, Layout layout, int world, bool guarded);
  void make_outputs(const RingSettings& settings, const Problem& problem);

  /// Throws kInternal if memory beside an output was written.
  void require_intact_outputs() const;
};

/// A workspace of exactly the bytes asked for, with bytes after it that nobody may touch.
class GuardedWorkspace {
 public:
  explicit GuardedWorkspace(std::size_t bytes);
  std::span<std::byte> span() { return {memory_.data() + begin_, bytes_}; }
  bool intact() const;

 private:
  std::vector<std::byte> memory_;
  std::size_t begin_ = 0;
  std::size_t bytes_ = 0;
};

std::vector<std::int64_t> shape_of(const ConstTensorView& view);

void require_intact(bool intact, int rank, const char* what);

}  // namespace ringattn::support
