// SPDX-License-Identifier: Apache-2.0
// This process's rank of a ring of processes: the counterpart of RingJob, whose ranks are threads.
// Every call is collective.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "memory.h"
#include "ring.h"
#include "ringattn/attention.h"
#include "support/ring_rank.h"

namespace ringattn::support {

/// Every rank's value, by rank. T is copied as bytes.
template <class T>
std::vector<T> gather_all(Communicator& ring, const T& own) {
  std::vector<T> all(static_cast<std::size_t>(ring.size()));
  all[static_cast<std::size_t>(ring.rank())] = own;
  gather(ring, host_memory(), std::as_writable_bytes(std::span(all)), sizeof(T), {});
  return all;
}

/// Runs `work`, which talks to nobody, on rank 0, in a thread beside, while the ring keeps itself
/// company: no deadline passes however long it takes. If it throws, so does every rank.
void while_others_wait(Communicator& ring, std::chrono::milliseconds timeout,
                       const std::function<void()>& work);

class RankJob {
 public:
  /// `rows`: this rank's rows of every tensor; sinks whole. They must outlive the job. Of the
  /// settings, `ring` is not used.
  RankJob(Communicator& ring, const Problem& problem, const Options& options,
          const RingInputs& rows, const RingSettings& settings);

  /// The same, cutting the rows out of global tensors, which are not needed any more afterwards.
  static RankJob of_global(Communicator& ring, const Problem& problem, const Options& options,
                           const RingInputs& global, const RingSettings& settings);

  double forward();   // milliseconds, from all ranks ready to the last one done
  double backward();  // after forward()

  /// What came out here: this rank's rows.
  const RingRank& rank() const { return *rank_; }

  /// Everything but the tensors, of all ranks.
  RingResult summary();

  /// The global tensors too, on rank 0: for what fits there.
  RingResult result();

 private:
  RankJob(Communicator& ring, const Problem& problem, const Options& options,
          const RingSettings& settings);
  double timed_pass(bool backward);
  template <class Take>
  void send_to_first(const HostTensor& own, const Take& take);
  HostTensor collect(const LocalTensor& rows, int seq_dim, std::int64_t length);
  void require_equal_everywhere(const HostTensor& own);

  Communicator* ring_;
  Problem problem_;
  Options options_;
  RingSettings settings_;
  std::unique_ptr<RingRank> rank_;
  double forward_ms_ = 0.0;
  double backward_ms_ = 0.0;
};

}  // namespace ringattn::support
