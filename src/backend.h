// SPDX-License-Identifier: Apache-2.0
// What a backend is: one rank's work on one block of keys, forward and backward. It knows nothing
// of rings or communicators. What survives between the steps of a pass is its own too, in `state`.
// All pointers are into memory(), the schedule's too.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory.h"
#include "plan.h"
#include "ringattn/attention.h"
#include "schedule.h"

namespace ringattn {

/// What both passes of one step know.
struct StepContext {
  const Plan& plan;
  const PairSchedule& schedule;    // this rank's queries against this block's keys
  ConstTensorView query;           // [B, Sq, H, D]
  ConstTensorView key;             // [B, Sk, G, D]
  ConstTensorView value;           // [B, Sk, G, Dv]
  const double* sinks;             // [H], one logit per head, or null
  bool first;                      // no state yet
  bool last;                       // finish: sinks, division, rounding
  std::span<std::byte> workspace;  // workspace_bytes(): scratch of this step
  Executor& executor;
  Stream stream;
  std::span<std::byte> state{};  // state_bytes(): written by the first step, kept until the last
  bool continued = false;        // workspace is as the step before this one left it
  const std::byte* shared = nullptr;  // this block as its owner's share_block() left it, or null
};

struct ForwardStep : StepContext {
  TensorView out;  // written by the last step
  TensorView lse;  // likewise, if present
  bool with_lse;   // lse is asked for, which a backward needs; in every step alike
};

struct BackwardStep : StepContext {
  ConstTensorView out;
  ConstTensorView lse;
  ConstTensorView dout;
  ConstTensorView dlse;   // may be absent
  TensorView dquery;      // written by the last step; on hosts, behind the first one, it may lie
                          // where dout does
  double* dsinks;         // [H], this rank's part, written by the first step; or null
  std::byte* dkey_sum;    // [B, Sk, G, D] of sum_dtype(): overwritten with this step's part
  std::byte* dvalue_sum;  // [B, Sk, G, Dv]
  // Only for a backend that rounds_gradients(), where nobody else adds to them: written instead.
  TensorView dkey{};
  TensorView dvalue{};
  bool adds = false;  // on hosts: this step's part is added to what is in dkey_sum and dvalue_sum
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;

  /// Where tensors, workspace and state lie.
  virtual const Memory& memory() const { return host_memory(); }

  /// Why this build or machine cannot run it at all; none: it can.
  virtual std::optional<std::string> why_absent() const { return std::nullopt; }

  /// Why it does not take this problem; none: it does.
  virtual std::optional<std::string> why_not(const Problem& problem,
                                             const Options& options) const = 0;

  /// The tile table: shape for a pass, hints honoured where they are possible.
  virtual TileShape tiles(const Problem& problem, const TileHint& hint, Pass pass) const = 0;

  virtual std::vector<std::string> instruction_sets() const { return {}; }

  /// Does backward() write gradients of keys and values in their own dtype, if this step is the
  /// only one that adds to them?
  virtual bool rounds_gradients() const { return false; }

  /// kFloat32, or kFloat64 for a backend that accumulates so.
  virtual DType sum_dtype() const { return DType::kFloat32; }

  /// Bytes of StepContext::workspace.
  virtual std::size_t workspace_bytes(const Plan&, Pass) const { return 0; }

  /// Bytes of StepContext::state: a multiple of the batch, so that batch rows can be its first
  /// dimension. Read and written as float or double, so aligned like those.
  virtual std::size_t state_bytes(const Plan&, Pass) const { return 0; }

  /// Bytes of what share_block() writes, the same for every rank; 0: this backend shares nothing.
  virtual std::size_t shared_block_bytes(const Plan&, Pass) const { return 0; }

  /// Where ranks share memory: makes of the step's keys and values, once, by their owner, what the
  /// pass of every rank reads instead of them.
  virtual void share_block(const StepContext&, Pass, std::span<std::byte>) const {}

  /// Visible pairs and tiles of this step (hops and bytes are the ring's); nothing where
  /// memory() is not the host's, as the work is only enqueued.
  virtual PassCounts forward(const ForwardStep& step) const = 0;
  virtual PassCounts backward(const BackwardStep& step) const = 0;

  /// sum += part, n elements of sum_dtype().
  virtual void accumulate(std::byte* sum, const std::byte* part, std::int64_t n, Executor& executor,
                          Stream stream) const = 0;

  /// Rounds contiguous [B, S, heads, dim] sums to the dtype of `out`, once.
  virtual void store(const std::byte* sum, TensorView out, Executor& executor,
                     Stream stream) const = 0;
};

/// The explicit ordered list: best first, reference last.
std::span<const Backend* const> all_backends();

/// The first backend that takes the problem, or the one that is named. Throws kUnsupported with
/// every backend's reason.
struct ChosenBackend {
  const Backend* backend;
  std::string reason;
};
ChosenBackend choose_backend(const Problem& problem, const Options& options);

}  // namespace ringattn
