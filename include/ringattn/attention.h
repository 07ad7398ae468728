// SPDX-License-Identifier: Apache-2.0
// Exact attention over a ring of ranks, forward and backward. The meaning of every argument is in
// docs/contract.md. Dimension letters: B batch, S sequence, H query heads, G kv heads, D head dim.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ringattn/communicator.h"
#include "ringattn/error.h"
#include "ringattn/executor.h"
#include "ringattn/layout.h"
#include "ringattn/mask.h"
#include "ringattn/tensor.h"

namespace ringattn {

/// What is computed: global sizes, equal on every rank.
struct Problem {
  std::int64_t batch = 1;
  std::int64_t query_seq = 0;    // Sq of the whole ring
  std::int64_t key_seq = 0;      // Sk of the whole ring
  std::int64_t query_heads = 1;  // H
  std::int64_t kv_heads = 1;     // G; H % G == 0, query head h reads kv head h / (H / G)
  std::int64_t head_dim = 0;     // D
  std::int64_t value_dim = 0;    // Dv; 0: D
  DType dtype = DType::kFloat32;
  Device device = Device::kCpu;
};

/// Tile hints: results are equal within tolerance whatever they are. 0: the backend's choice; what
/// is above its largest tile is cut to that.
struct TileHint {
  std::int64_t q_blocksize = 0;
  std::int64_t kv_blocksize = 0;
};

/// How it is computed, equal on every rank.
struct Options {
  Mask mask{};                             // on global positions
  Layout layout = Layout::kContiguous;     // which rows this rank's tensors hold
  std::optional<float> softmax_scale{};    // default head_dim ** -0.5
  std::optional<float> logits_soft_cap{};  // cap * tanh(x / cap), after scale, before mask
  bool segment_ids = false;                // q_segment_ids / kv_segment_ids will be passed
  bool explicit_positions = false;         // q_positions / kv_positions will be passed
  TileHint forward_tiles{};                // fwd_params
  TileHint backward_tiles{};               // bwd_params
  bool fused_backward = false;             // hint: one backward pass instead of two
  bool deterministic = false;              // the CPU always is
  std::string backend = "auto";            // "auto", "reference", "cpu", "cpu:<instruction set>"
  std::shared_ptr<Executor> executor{};    // none: default_executor()
};

/// This rank's shards; S_local = positions(layout, S, world, rank).size(). Absent views are
/// default-constructed. Float data has the problem's dtype.
struct ForwardArgs {
  ConstTensorView query{};           // [B, Sq_local, H, D]
  ConstTensorView key{};             // [B, Sk_local, G, D]
  ConstTensorView value{};           // [B, Sk_local, G, Dv]
  ConstTensorView q_segment_ids{};   // [B, Sq_local] int32; one of the two given serves both if
  ConstTensorView kv_segment_ids{};  // [B, Sk_local] int32; Sq == Sk
  ConstTensorView q_positions{};     // [Sq_local] int32 or int64
  ConstTensorView kv_positions{};    // [Sk_local] int32 or int64
  ConstTensorView sinks{};           // softmax_aux: [H], [S] or [H, S], any float dtype
  TensorView out{};                  // [B, Sq_local, H, Dv] in the problem's dtype or f32
  TensorView lse{};  // [B, H, Sq_local] f32, natural log; optional. Without it, not to
                     // be differentiated: see docs/contract.md, Precision
};

/// The forward's tensors, whose `out` and `lse` are now inputs, and the gradients.
struct BackwardArgs {
  ConstTensorView query{}, key{}, value{};
  ConstTensorView q_segment_ids{}, kv_segment_ids{};
  ConstTensorView q_positions{}, kv_positions{};
  ConstTensorView sinks{};
  ConstTensorView out{};   // as the forward wrote it
  ConstTensorView lse{};   // as the forward wrote it; required
  ConstTensorView dout{};  // [B, Sq_local, H, Dv]
  ConstTensorView dlse{};  // [B, H, Sq_local] f32, the gradient of lse; optional
  TensorView dquery{};     // shape of query, in the problem's dtype or f32
  TensorView dkey{};       // shape of key
  TensorView dvalue{};     // shape of value
  TensorView dsinks{};     // shape of sinks, f32; required with sinks. Summed over the whole ring
                           // and equal on every rank
};

/// Tiles of all pairs of shards: visited includes full; visited + skipped is all of them.
struct TileCounts {
  std::int64_t visited = 0;
  std::int64_t full = 0;
  std::int64_t skipped = 0;
  friend bool operator==(const TileCounts&, const TileCounts&) = default;
};

/// What one rank did, or will do, in one pass.
struct PassCounts {
  std::int64_t hops = 0;   // steps on which this rank sends something
  std::int64_t bytes = 0;  // sent by this rank
  TileCounts tiles;
  std::int64_t pairs = 0;  // visible (query, key) pairs over batch and query heads
  std::int64_t flops = 0;  // of visible pairs
  friend bool operator==(const PassCounts&, const PassCounts&) = default;
};

class Plan;  // src/plan.h

/// One attention problem bound to one rank. Construction checks every option (throws
/// kInvalidArgument or kUnsupported), compares problem and options with the other ranks (throws
/// kCommunication on every rank if they differ) and is the last place that allocates, but for the
/// owned workspace at the first call without one. A call is collective: every rank makes it.
class RingAttention {
 public:
  RingAttention(Communicator& ring, const Problem& problem, const Options& options = {});
  /// One device.
  explicit RingAttention(const Problem& problem, const Options& options = {});
  ~RingAttention();
  RingAttention(RingAttention&&) noexcept;
  RingAttention& operator=(RingAttention&&) noexcept;

  /// Bytes of workspace that each pass needs on this rank, alignment included.
  std::size_t forward_workspace_bytes() const;
  std::size_t backward_workspace_bytes() const;

  const std::string& backend() const;         // the chosen one
  const std::string& backend_reason() const;  // and why

  /// Computes out and lse. `workspace`: at least forward_workspace_bytes(), 64-byte aligned;
  /// empty: one that this object owns.
  PassCounts forward(const ForwardArgs& args, std::span<std::byte> workspace = {},
                     Stream stream = {});

  /// Computes the gradients from the forward's out and lse.
  PassCounts backward(const BackwardArgs& args, std::span<std::byte> workspace = {},
                      Stream stream = {});

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// One device, one call: sizes, segment ids and positions come from the views.
PassCounts attention(const ForwardArgs& args, Options options = {});
PassCounts attention_backward(const BackwardArgs& args, Options options = {});

/// One backend of this build: whether it is there, and if not, why.
struct BackendInfo {
  std::string name;
  bool available = false;
  std::string reason;                         // why it is absent
  std::vector<std::string> instruction_sets;  // best first; those this machine has
};
std::vector<BackendInfo> backends();

}  // namespace ringattn
