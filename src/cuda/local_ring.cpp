// SPDX-License-Identifier: Apache-2.0
// A ring on one GPU: the local ring for the hosts' part, and events that order the streams.
#include <map>
#include <string>

#include "cuda/check.h"
#include "ringattn/cuda.h"

namespace ringattn::cuda {
namespace {

/// Events of all ranks, by channel and number: the sender's n-th message to a rank is that rank's
/// n-th from it. Each event is made and recorded by one thread; the hosts' rendezvous shows it to
/// the other.
class Events {
 public:
  explicit Events(int ranks) : ranks_(ranks), slots_(2 * ranks + 16) {
    const auto n = static_cast<std::size_t>(ranks);
    events_.resize(2 * n * n * static_cast<std::size_t>(slots_));
  }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;
  ~Events() {
    for (cudaEvent_t event : events_) {
      if (event != nullptr) (void)cudaEventDestroy(event);
    }
  }

  enum Kind { kSent, kRead };

  void record(Kind kind, int from, int to, std::int64_t number, Stream stream) {
    cudaEvent_t& event = at(kind, from, to, number);
    if (event == nullptr) {
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
    }
    check(cudaEventRecord(event, native(stream)), "cudaEventRecord");
  }
  void wait(Kind kind, int from, int to, std::int64_t number, Stream stream) {
    cudaEvent_t event = at(kind, from, to, number);
    if (event != nullptr) check(cudaStreamWaitEvent(native(stream), event), "cudaStreamWaitEvent");
  }

 private:
  cudaEvent_t& at(Kind kind, int from, int to, std::int64_t number) {
    const std::int64_t channel = (static_cast<std::int64_t>(kind) * ranks_ + from) * ranks_ + to;
    return events_[static_cast<std::size_t>(channel * slots_ + number % slots_)];
  }
  int ranks_;
  std::int64_t slots_;
  std::vector<cudaEvent_t> events_;
};

class CudaLocalCommunicator final : public Communicator {
 public:
  CudaLocalCommunicator(std::unique_ptr<Communicator> hosts, std::shared_ptr<Events> events)
      : hosts_(std::move(hosts)),
        events_(std::move(events)),
        sent_(static_cast<std::size_t>(hosts_->size())),
        expected_(static_cast<std::size_t>(hosts_->size())) {}

  int rank() const noexcept override { return hosts_->rank(); }
  int size() const noexcept override { return hosts_->size(); }
  std::string_view name() const noexcept override { return "cuda-local"; }
  bool hands_over() const noexcept override { return true; }

  Ticket shift(std::span<const std::byte> out, std::span<std::byte> in, std::size_t expected,
               int offset, Stream stream, Cargo cargo) override {
    Transfer transfer{peer(offset), peer(-offset), -1, -1, false};
    if (!out.empty()) {  // recorded before the peer can learn of the transfer
      transfer.sent = sent_[static_cast<std::size_t>(transfer.to)]++;
      events_->record(Events::kSent, rank(), transfer.to, transfer.sent, stream);
    }
    if (expected > 0) transfer.expected = expected_[static_cast<std::size_t>(transfer.from)]++;
    const Ticket ticket = hosts_->shift(out, in, expected, offset, stream, cargo);
    open_[ticket] = transfer;
    return ticket;
  }

  std::span<const std::byte> wait(Ticket ticket, Stream stream) override {
    const auto data = hosts_->wait(ticket, stream);
    Transfer& transfer = open_.at(ticket);
    if (transfer.expected >= 0 && !transfer.received) {
      transfer.received = true;
      events_->wait(Events::kSent, transfer.from, rank(), transfer.expected, stream);
    }
    return data;
  }

  void finish(Ticket ticket, Stream stream) override {
    const Transfer transfer = open_.at(ticket);
    if (transfer.received) {
      events_->record(Events::kRead, transfer.from, rank(), transfer.expected, stream);
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
    if (transfer.sent >= 0) {
      events_->wait(Events::kRead, rank(), transfer.to, transfer.sent, stream);
    }
  }

  void abort(std::string_view reason) noexcept override { hosts_->abort(reason); }

 private:
  struct Transfer {
    int to, from;
    std::int64_t sent;      // its number among the messages to `to`; -1: none
    std::int64_t expected;  // its number among those from `from`; -1: none
    bool received;
  };

  int peer(int offset) const { return ((rank() + offset) % size() + size()) % size(); }

  std::unique_ptr<Communicator> hosts_;
  std::shared_ptr<Events> events_;
  std::vector<std::int64_t> sent_;  // messages so far, per rank
  std::vector<std::int64_t> expected_;
  std::map<Ticket, Transfer> open_;
};

}  // namespace
}  // namespace ringattn::cuda

namespace ringattn {

std::vector<std::unique_ptr<Communicator>> make_cuda_local_ring(int n,
                                                                std::chrono::milliseconds timeout) {
  std::vector<std::unique_ptr<Communicator>> ranks = make_local_ring(n, timeout);
  const auto events = std::make_shared<cuda::Events>(n);
  for (auto& rank : ranks) {
    rank = std::make_unique<cuda::CudaLocalCommunicator>(std::move(rank), events);
  }
  return ranks;
}

}  // namespace ringattn
