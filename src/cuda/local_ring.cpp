// SPDX-License-Identifier: Apache-2.0
// A ring on one GPU: the local ring for the hosts' part, and events that order the streams.
#include <map>
#include <string>

#include "cuda/check.h"
#include "ringattn/cuda.h"

namespace ringattn::cuda {
namespace {

/// Events of all ranks, by ticket: every rank calls the same verbs, so that a transfer has the same
/// ticket on both of its ends.
class Events {
 public:
  Events(int ranks, int slots) : slots_(slots) {
    events_.resize(static_cast<std::size_t>(2 * ranks * slots));
    for (cudaEvent_t& event : events_) {
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
    }
  }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;
  ~Events() {
    for (cudaEvent_t event : events_) (void)cudaEventDestroy(event);
  }

  cudaEvent_t sent(int rank, Communicator::Ticket ticket) { return at(2 * rank, ticket); }
  cudaEvent_t read(int rank, Communicator::Ticket ticket) { return at(2 * rank + 1, ticket); }

 private:
  cudaEvent_t at(int row, Communicator::Ticket ticket) {
    return events_[static_cast<std::size_t>(row) * static_cast<std::size_t>(slots_) +
                   static_cast<std::size_t>(ticket % slots_)];
  }
  int slots_;
  std::vector<cudaEvent_t> events_;
};

class CudaLocalCommunicator final : public Communicator {
 public:
  CudaLocalCommunicator(std::unique_ptr<Communicator> hosts, std::shared_ptr<Events> events)
      : hosts_(std::move(hosts)), events_(std::move(events)) {}

  int rank() const noexcept override { return hosts_->rank(); }
  int size() const noexcept override { return hosts_->size(); }
  std::string_view name() const noexcept override { return "cuda-local"; }
  bool hands_over() const noexcept override { return true; }

  Ticket shift(std::span<const std::byte> out, std::span<std::byte> in, std::size_t expected,
               int offset, Stream stream) override {
    // Recorded before the peer can learn of the transfer.
    if (!out.empty()) check(cudaEventRecord(events_->sent(rank(), next_), native(stream)), "event");
    const Ticket ticket = hosts_->shift(out, in, expected, offset, stream);
    if (ticket != next_) throw Error(ErrorCode::kInternal, "the local ring skipped a ticket");
    open_[next_++] = {offset, !out.empty(), false};
    return ticket;
  }

  std::span<const std::byte> wait(Ticket ticket, Stream stream) override {
    const auto data = hosts_->wait(ticket, stream);
    Transfer& transfer = open_.at(ticket);
    if (!data.empty() && !transfer.received) {
      transfer.received = true;
      check(cudaStreamWaitEvent(native(stream), events_->sent(peer(-transfer.offset), ticket)),
            "waiting for an event");
    }
    return data;
  }

  void finish(Ticket ticket, Stream stream) override {
    const Transfer transfer = open_.at(ticket);
    if (transfer.received) {
      check(cudaEventRecord(events_->read(rank(), ticket), native(stream)), "event");
    }
    try {
      hosts_->finish(ticket, stream);
    } catch (...) {
      // A peer's kernel may still read what this rank is about to free.
      (void)cudaDeviceSynchronize();
      open_.erase(ticket);
      throw;
    }
    open_.erase(ticket);
    if (transfer.sent) {
      check(cudaStreamWaitEvent(native(stream), events_->read(peer(transfer.offset), ticket)),
            "waiting for an event");
    }
  }

  void abort(std::string_view reason) noexcept override { hosts_->abort(reason); }

 private:
  struct Transfer {
    int offset;
    bool sent;
    bool received;
  };

  int peer(int offset) const { return ((rank() + offset) % size() + size()) % size(); }

  std::unique_ptr<Communicator> hosts_;
  std::shared_ptr<Events> events_;
  Ticket next_ = 0;
  std::map<Ticket, Transfer> open_;
};

}  // namespace
}  // namespace ringattn::cuda

namespace ringattn {

std::vector<std::unique_ptr<Communicator>> make_cuda_local_ring(int n,
                                                                std::chrono::milliseconds timeout) {
  std::vector<std::unique_ptr<Communicator>> ranks = make_local_ring(n, timeout);
  // A rank has fewer than 4 transfers a hop open at once.
  const auto events = std::make_shared<cuda::Events>(n, 4 * n + 64);
  for (auto& rank : ranks) {
    rank = std::make_unique<cuda::CudaLocalCommunicator>(std::move(rank), events);
  }
  return ranks;
}

}  // namespace ringattn
