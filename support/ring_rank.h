// SPDX-License-Identifier: Apache-2.0
// One rank's shards, results and attention, whatever ring it is on. Internal to ring_run.cpp and
// rank_job.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "support/local_tensor.h"
#include "support/ring_run.h"

namespace ringattn::support {

/// One rank: this rank's rows, its results, its attention.
struct RingRank {
  int rank = 0;
  RingInputs in;                   // this rank's rows; sinks whole
  std::vector<LocalTensor> owned;  // what `in` shows, if it was cut here
  LocalTensor out, lse, dquery, dkey, dvalue, dsinks;
  std::unique_ptr<RingAttention> attention;
  PassCounts forward, backward;
  const Memory* memory = &host_memory();  // where the tensors of a call lie
  Stream stream;

  ForwardArgs forward_args();
  BackwardArgs backward_args();

  /// Copies this rank's rows out of global tensors, to its memory.
  void cut_inputs(const RingInputs& global, Layout layout, int world, Guard guard);
  void make_outputs(const RingSettings& settings, const Problem& problem);

  /// Runs one pass, waits for its stream, and notes its counts. What it wrote stays in its memory.
  void run_pass(bool backward, Guard guard);

  /// Brings to the host what was written.
  void fetch_outputs();

 private:
  std::array<LocalTensor*, 6> outputs();

  /// Throws kInternal if memory beside an output was written.
  void require_intact_outputs() const;
};

/// A workspace of exactly the bytes asked for, where the backend wants it, all NaN so that nobody
/// counts on zeros, with bytes after it that nobody may touch.
class GuardedWorkspace {
 public:
  GuardedWorkspace(const Memory& memory, std::size_t bytes);
  std::span<std::byte> span() { return {data_.get(), bytes_}; }
  bool intact() const;

 private:
  const Memory& memory_;
  std::size_t bytes_;
  Allocation data_;
};

std::vector<std::int64_t> shape_of(const ConstTensorView& view);

void require_intact(bool intact, int rank, const char* what);

}  // namespace ringattn::support
