// SPDX-License-Identifier: Apache-2.0
// THE ring loop, for every pass, backend, layout and communicator, and the only caller of shift
// but for gather() (Liu, Zaharia & Abbeel 2023, arXiv 2310.01889, section 3).
#pragma once

#include <cstddef>
#include <exception>
#include <span>
#include <vector>

#include "memory.h"
#include "plan.h"
#include "ringattn/communicator.h"
#include "workspace.h"

namespace ringattn {

/// What a rank sent in one pass.
struct Traffic {
  std::int64_t hops = 0;
  std::int64_t bytes = 0;
};

/// Keys and values on their way round the ring, both ways from this rank's own block.
class TravellingBlocks {
 public:
  TravellingBlocks(Communicator& ring, const Plan& plan, const Workspace& workspace, Stream stream);

  /// Starts the transfer that brings next.owner's block here.
  void depart(const Step& next);

  /// Waits for it; here() is then that block.
  void arrive(const Step& next);

  std::span<const std::byte> here() const { return here_; }

  /// Nobody reads this rank's memory any more. Last transfer first: see Communicator::finish.
  void finish(Traffic& traffic);

  /// The same after a failure: never throws.
  void abandon() noexcept;

 private:
  Communicator& ring_;
  const Plan& plan_;
  const Workspace& workspace_;
  Stream stream_;
  std::span<const std::byte> here_;
  std::vector<Communicator::Ticket> open_;
  std::int64_t bytes_ = 0;
  int next_buffer_ = 0;
};

/// dK and dV of travelling blocks. A block's sums start at its first stop away from home, grow
/// from stop to stop behind the block, and go home from the last one.
class TravellingSums {
 public:
  TravellingSums(Communicator& ring, const Plan& plan, const Backend& backend, const Route& route,
                 const Workspace& workspace, Executor& executor, Stream stream);

  /// Where step s writes its part: ready to be overwritten.
  std::span<std::byte> part(std::size_t s);

  /// Adds what came from the previous stop to the part of step s, and sends it on, or home.
  void pass_on(std::size_t s);

  /// Waits until everybody's share of this rank's own block has been added to own_sums.
  void finish(Traffic& traffic);
  void abandon() noexcept;

 private:
  struct Shift {
    Communicator::Ticket ticket;
    std::size_t step;  // at whose end it was posted
    bool brings_home;
  };

  void add(std::span<std::byte> sum, std::span<const std::byte> part, int owner);
  void collect_home(std::size_t before);
  void finish_shifts(std::size_t before);
  void post(std::size_t s, std::span<const std::byte> out, std::span<std::byte> in,
            std::size_t expected, int offset, Cargo cargo, bool brings_home);

  Communicator& ring_;
  const Plan& plan_;
  const Backend& backend_;
  const Route& route_;
  const Workspace& workspace_;
  Executor& executor_;
  Stream stream_;
  std::vector<Shift> open_;  // in the order posted
  std::size_t collected_ = 0;
  Communicator::Ticket onward_ = -1;  // brings the sums for the next step
  std::int64_t bytes_ = 0;
};

/// Runs compute(step, block, part) for every live step of the route; `sums` may be null (forward).
template <class Compute>
Traffic run_ring(const Route& route, TravellingBlocks& blocks, TravellingSums* sums,
                 Compute compute) {
  Traffic traffic;
  for (std::size_t s = 0; s < route.steps.size(); ++s) {
    const Step& step = route.steps[s];
    const bool more = s + 1 < route.steps.size();
    if (more) blocks.depart(route.steps[s + 1]);  // the next block is on its way ...
    std::span<std::byte> part;
    if (sums != nullptr) part = sums->part(s);
    if (step.live) compute(step, blocks.here(), part);  // ... while this one is used
    if (sums != nullptr) sums->pass_on(s);
    if (more) blocks.arrive(route.steps[s + 1]);
    const bool home = sums != nullptr && route.stops_here(s);
    traffic.hops += step.sends || home ? 1 : 0;
  }
  if (sums != nullptr) sums->finish(traffic);
  blocks.finish(traffic);
  return traffic;
}

/// All ranks' records: table[r] from rank r, each `bytes` long; table[rank] is this rank's own.
void gather(Communicator& ring, const Memory& memory, std::span<std::byte> table, std::size_t bytes,
            Stream stream);

/// Runs `work`; if it throws, aborts the ring so that no peer waits for this rank.
template <class Work>
auto guarded(Communicator* ring, Work work) {
  try {
    return work();
  } catch (const std::exception& error) {
    if (ring != nullptr) ring->abort(error.what());
    throw;
  } catch (...) {
    if (ring != nullptr) ring->abort("an unknown exception");
    throw;
  }
}

}  // namespace ringattn
