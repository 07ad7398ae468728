// SPDX-License-Identifier: Apache-2.0
// A ring inside one process. Transfers hand over pointers; a reader gives them back with finish().
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "comm/envelope.h"
#include "ringattn/communicator.h"
#include "ringattn/error.h"

namespace ringattn {
namespace {

struct Message {
  std::span<const std::byte> data;
  Envelope envelope;
  bool taken = false;     // the receiver has the pointer
  bool released = false;  // and has given it back
};

using MessagePtr = std::shared_ptr<Message>;

/// Messages from one rank to another, in the order sent and received.
struct Channel {
  std::int64_t sent = 0;
  std::int64_t expected = 0;
  std::map<std::int64_t, MessagePtr> waiting;  // by number
};

/// What all ranks share. One mutex: a ring has few ranks, and few transfers per hop.
struct Ring {
  Ring(int n, std::chrono::milliseconds limit)
      : size(n),
        timeout(limit),
        changed(static_cast<std::size_t>(n)),
        left(static_cast<std::size_t>(n), 0) {}

  /// Something that `rank` may wait for has happened.
  void notify(int rank) { changed[static_cast<std::size_t>(rank)].notify_all(); }
  void notify_everybody() {
    for (std::condition_variable& rank : changed) rank.notify_all();
  }

  const int size;
  const std::chrono::milliseconds timeout;
  std::mutex mutex;
  std::vector<std::condition_variable> changed;     // each rank waits at its own
  std::map<std::pair<int, int>, Channel> channels;  // (from, to)
  std::vector<char> left;                           // ranks whose communicator is gone
  int failed_rank = -1;                             // the first to abort
  std::string reason;
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<Ring> ring, int rank) : ring_(std::move(ring)), rank_(rank) {}

  LocalCommunicator(const LocalCommunicator&) = delete;
  LocalCommunicator& operator=(const LocalCommunicator&) = delete;

  ~LocalCommunicator() override {
    const std::lock_guard lock(ring_->mutex);
    // Whoever goes, reads no more: what it never finished must not hold its senders.
    for (auto& [ticket, transfer] : transfers_) {
      if (transfer.received != nullptr) transfer.received->released = true;
    }
    ring_->left[static_cast<std::size_t>(rank_)] = 1;
    ring_->notify_everybody();
  }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return ring_->size; }
  std::string_view name() const noexcept override { return "local"; }
  bool hands_over() const noexcept override { return true; }

  Ticket shift(std::span<const std::byte> out, std::span<std::byte>, std::size_t expected,
               int offset, Stream, Cargo cargo) override {
    const std::lock_guard lock(ring_->mutex);
    Transfer transfer;
    if (!out.empty()) {
      transfer.to = peer(offset);
      Channel& channel = ring_->channels[{rank_, transfer.to}];
      transfer.sent = std::make_shared<Message>(Message{
          out, envelope(rank_, cargo.hop, cargo.sent, channel.sent, out.size()), false, false});
      channel.waiting[channel.sent++] = transfer.sent;
      ring_->notify(transfer.to);
    }
    if (expected > 0) {
      transfer.from = peer(-offset);
      transfer.expected = envelope(transfer.from, cargo.hop, cargo.expected,
                                   ring_->channels[{transfer.from, rank_}].expected++, expected);
    }
    transfers_[next_] = transfer;
    return next_++;
  }

  std::span<const std::byte> wait(Ticket ticket, Stream) override {
    std::unique_lock lock(ring_->mutex);
    Transfer& transfer = transfers_.at(ticket);
    if (transfer.expected.bytes == 0) return {};
    if (transfer.received == nullptr) {
      auto& waiting = ring_->channels[{transfer.from, rank_}].waiting;
      until(lock, transfer.from, [&] { return waiting.contains(transfer.expected.number); });
      fail_if_aborted();
      transfer.received = waiting.at(transfer.expected.number);
      waiting.erase(transfer.expected.number);
      transfer.received->taken = true;
    }
    require_equal(transfer.received->envelope, transfer.expected, rank_);
    return transfer.received->data;
  }

  void finish(Ticket ticket, Stream) override {
    std::unique_lock lock(ring_->mutex);
    const Transfer transfer = transfers_.at(ticket);
    if (transfer.received != nullptr) {
      transfer.received->released = true;
      ring_->notify(transfer.from);
    }
    if (transfer.sent != nullptr) {
      Message& sent = *transfer.sent;
      until(lock, transfer.to, [&] { return sent.released; });
      // Aborted: a reader that has the pointer is computing and will give it back; one that has
      // not will never get it.
      changed().wait(lock, [&] { return sent.released || !sent.taken; });
    }
    transfers_.erase(ticket);
    if (transfer.sent != nullptr && !transfer.sent->released) fail_if_aborted();
  }

  void abort(std::string_view reason) noexcept override {
    const std::lock_guard lock(ring_->mutex);
    abort_locked(reason);
  }

 private:
  struct Transfer {
    MessagePtr sent;
    MessagePtr received;
    int from = -1;
    int to = -1;
    Envelope expected;
  };

  int peer(int offset) const {
    return ((rank_ + offset) % ring_->size + ring_->size) % ring_->size;
  }

  std::condition_variable& changed() { return ring_->changed[static_cast<std::size_t>(rank_)]; }

  /// Waits for `done`, which rank `other` brings about, or for an abort. A deadline missed, or a
  /// rank that has left without doing so, is an abort by this rank.
  template <class Done>
  void until(std::unique_lock<std::mutex>& lock, int other, Done done) {
    const auto gone = [&] { return ring_->left[static_cast<std::size_t>(other)] != 0; };
    const bool in_time = changed().wait_for(
        lock, ring_->timeout, [&] { return done() || ring_->failed_rank >= 0 || gone(); });
    if (done() || ring_->failed_rank >= 0) return;
    const std::string whom = "rank " + std::to_string(other);
    abort_locked(in_time ? whom + " has left the ring"
                         : "waited " + std::to_string(ring_->timeout.count()) + " ms for " + whom +
                               " without an answer");
  }

  void abort_locked(std::string_view reason) noexcept {
    if (ring_->failed_rank < 0) {
      ring_->failed_rank = rank_;
      try {
        ring_->reason = reason;
      } catch (...) {  // out of memory: the rank alone must do
      }
    }
    ring_->notify_everybody();
  }

  void fail_if_aborted() const {
    if (ring_->failed_rank < 0) return;
    throw Error(ErrorCode::kCommunication,
                "rank " + std::to_string(ring_->failed_rank) + " failed: " + ring_->reason);
  }

  std::shared_ptr<Ring> ring_;
  int rank_;
  Ticket next_ = 0;
  std::map<Ticket, Transfer> transfers_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_local_ring(int n,
                                                           std::chrono::milliseconds timeout) {
  if (n < 1) {
    throw Error(ErrorCode::kInvalidArgument, "ring size: expected >= 1, got " + std::to_string(n));
  }
  auto shared = std::make_shared<Ring>(n, timeout);
  std::vector<std::unique_ptr<Communicator>> ranks;
  ranks.reserve(static_cast<std::size_t>(n));
  for (int r = 0; r < n; ++r) ranks.push_back(std::make_unique<LocalCommunicator>(shared, r));
  return ranks;
}

}  // namespace ringattn
