// SPDX-License-Identifier: Apache-2.0
// A ring of ranks as a few verbs over bytes. It knows nothing of tensors, masks or hops.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace ringattn {

/// Where device work is ordered. On the CPU it means nothing and stays null.
struct Stream {
  void* handle = nullptr;
};

/// What a transfer carries. Nothing is computed from it: both ends say it, and a difference, such
/// as a buffer of another hop, is an error.
struct Cargo {
  int hop = 0;       // offset of the step that it belongs to
  int sent = 0;      // the rank whose block goes out,
  int expected = 0;  // and whose comes in

  friend bool operator==(const Cargo&, const Cargo&) = default;
};

/// Every rank of the ring calls the same verbs in the same order. Waits have a deadline; a lost,
/// silent or failed peer is an Error(kCommunication) on every rank, never a hang.
class Communicator {
 public:
  /// Names a transfer until finish().
  using Ticket = std::int64_t;

  virtual ~Communicator() = default;

  virtual int rank() const noexcept = 0;
  virtual int size() const noexcept = 0;

  /// "local", "mpi", ...
  virtual std::string_view name() const noexcept = 0;

  /// True if wait() hands out the sender's own memory, so that no receive buffers are needed.
  virtual bool hands_over() const noexcept = 0;

  /// Starts one transfer and returns at once: `out` goes to rank + offset, and `expected` bytes
  /// come from rank - offset (indices mod size; |offset| < size). Zero bytes: nothing goes, or
  /// nothing comes; both ends must agree. `in` receives them unless hands_over(). `out` must stay
  /// unchanged until finish().
  virtual Ticket shift(std::span<const std::byte> out, std::span<std::byte> in,
                       std::size_t expected, int offset, Stream stream, Cargo cargo = {}) = 0;

  /// Orders what follows after the arrival (blocks on a CPU). Returns where the bytes are: `in`,
  /// or, if hands_over(), the sender's memory, valid until finish(). A later shift may send them
  /// on.
  virtual std::span<const std::byte> wait(Ticket ticket, Stream stream) = 0;

  /// Gives back what was received, then waits until nobody reads `out` any more. If hands_over(),
  /// a transfer that sends on what an earlier one received is finished before that one. Throws if
  /// the ring was aborted, but also then only once no peer reads `out`.
  virtual void finish(Ticket ticket, Stream stream) = 0;

  /// Moves transfers on without waiting. Called between pieces of work, by the thread that calls
  /// the other verbs: a ring that nobody drives in the background needs it to hide its transfers.
  virtual void progress() noexcept {}

  /// Makes every present and later wait of every rank fail, naming this rank and the reason.
  virtual void abort(std::string_view reason) noexcept = 0;
};

/// How long one wait may last before the peer counts as lost. A peer that computes is silent too:
/// the deadline must be longer than one hop takes.
inline constexpr std::chrono::milliseconds kDefaultTimeout = std::chrono::minutes(5);

/// A ring of n ranks inside this process, each to be driven by its own thread. Transfers hand
/// over pointers and copy nothing. Element r is rank r. Throws kInvalidArgument if n < 1.
std::vector<std::unique_ptr<Communicator>> make_local_ring(
    int n, std::chrono::milliseconds timeout = kDefaultTimeout);

}  // namespace ringattn
