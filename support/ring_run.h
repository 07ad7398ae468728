// SPDX-License-Identifier: Apache-2.0
// Global tensors through a ring of threads in this process and back: shards, runs forward and
// backward, unshards, times. It neither reads files nor judges results.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/host_tensor.h"
#include "memory.h"
#include "ringattn/attention.h"
#include "support/local_tensor.h"

namespace ringattn::support {

/// Global tensors, in global order. Views that are absent stay default-constructed.
struct RingInputs {
  ConstTensorView query;           // [B, Sq, H, D] of the problem's dtype
  ConstTensorView key;             // [B, Sk, G, D]
  ConstTensorView value;           // [B, Sk, G, Dv]
  ConstTensorView q_segment_ids;   // [B, Sq] int32
  ConstTensorView kv_segment_ids;  // [B, Sk] int32
  ConstTensorView q_positions;     // [Sq] int32 or int64
  ConstTensorView kv_positions;    // [Sk]
  ConstTensorView sinks;           // softmax_aux: [H], [S] or [H, S]
  ConstTensorView dout;            // [B, Sq, H, Dv], for the backward
  ConstTensorView dlse;            // [B, H, Sq] f32, optional
};

struct RingSettings {
  int ring = 1;
  bool backward = false;
  bool lse = true;                    // the backward makes it anyway
  std::optional<DType> out_dtype;     // none: the problem's
  std::optional<DType> grad_dtype;    // none: the problem's
  DType lse_dtype = DType::kFloat32;  // of lse, dlse and dsinks; kFloat64: "reference" only
  std::chrono::milliseconds timeout = kDefaultTimeout;
  Guard guard = Guard::kNone;  // of local tensors
  /// Called after a rank has finished a pass, from its thread, one call at a time.
  std::function<void(bool backward, int ranks_done)> progress;
};

/// What came out, in global order. Tensors that were not asked for have no elements and no shape.
struct RingResult {
  HostTensor out;                    // [B, Sq, H, Dv]
  HostTensor lse;                    // [B, H, Sq]
  HostTensor dquery;                 // shape of query
  HostTensor dkey;                   // shape of key
  HostTensor dvalue;                 // shape of value
  HostTensor dsinks;                 // shape of sinks
  std::vector<PassCounts> forward;   // one per rank
  std::vector<PassCounts> backward;  // empty without a backward
  double forward_ms = 0.0;           // from all ranks ready to the last one done
  double backward_ms = 0.0;
  std::string backend;
  std::string backend_reason;
};

struct RingRank;  // ring_rank.h

/// A ring whose ranks hold their shards, in the memory of the problem's device; a single one on the
/// host reads the inputs where they lie, so let them live as long. Run its passes as often as you
/// like. Options' segment_ids and explicit_positions follow from the inputs. Throws
/// what the rank threw that failed by itself, not its peers' complaints about it. With `guarded`, a
/// write outside an output is an Error(kInternal).
class RingJob {
 public:
  RingJob(const Problem& problem, const Options& options, const RingInputs& inputs,
          const RingSettings& settings);
  ~RingJob();

  /// Milliseconds from all ranks ready until the last one's work is done: on a GPU, its stream is
  /// waited for. Copies of tensors from and to the host are not in it.
  double forward();
  double backward();  // after forward()

  /// Everything but the tensors.
  RingResult summary() const;

  /// What the passes wrote, too. Frees inputs and workspaces first: nothing runs after it.
  RingResult finish();

 private:
  template <class Work>
  double on_all_ranks(const Work& work);
  void run_pass(RingRank& rank, bool backward, int& done);

  RingSettings settings_;
  Problem problem_;
  Options options_;
  const Memory& memory_;
  std::vector<std::unique_ptr<Communicator>> ring_;
  std::vector<std::unique_ptr<RingRank>> ranks_;
  double forward_ms_ = 0.0;
  double backward_ms_ = 0.0;
};

/// The whole job once.
RingResult run_on_ring(const Problem& problem, const Options& options, const RingInputs& inputs,
                       const RingSettings& settings);

}  // namespace ringattn::support
