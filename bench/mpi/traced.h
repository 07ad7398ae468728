// SPDX-License-Identifier: Apache-2.0
// A ring that remembers one pass, so that its transfers and its compute can be timed one by one.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "ringattn/communicator.h"

namespace ringattn::bench {

inline double milliseconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

/// Passes every verb on to `inner`. What a pass did while recording can be repeated without its
/// compute (transfers()), and a later pass can do without its transfers (recall).
class Traced final : public Communicator {
 public:
  enum class Mode { kPassOn, kRecord, kRecall };

  explicit Traced(Communicator& inner) : inner_(inner) {}

  /// For the pass that follows.
  void begin(Mode mode) {
    mode_ = mode;
    next_ = 0;
    verbs_ms_ = progress_ms_ = 0.0;
    if (mode != Mode::kRecord) return;
    shifts_.clear();
    verbs_.clear();
  }

  /// Milliseconds that the caller spent in shift, wait and finish since begin().
  double verbs_ms() const { return verbs_ms_; }

  /// And in progress(), between pieces of its work.
  double progress_ms() const { return progress_ms_; }

  /// The recorded shifts, waits and finishes, in their order and from and to the same memory.
  void transfers() {
    for (const Verb& verb : verbs_) {
      Recorded& s = shifts_[verb.shift];
      if (verb.kind == 's') {
        s.ticket = inner_.shift(s.out, s.in, s.expected, s.offset, {}, s.cargo);
      } else if (verb.kind == 'w') {
        inner_.wait(s.ticket, {});
      } else {
        inner_.finish(s.ticket, {});
      }
    }
  }

  int rank() const noexcept override { return inner_.rank(); }
  int size() const noexcept override { return inner_.size(); }
  std::string_view name() const noexcept override { return inner_.name(); }
  bool hands_over() const noexcept override { return inner_.hands_over(); }

  Ticket shift(std::span<const std::byte> out, std::span<std::byte> in, std::size_t expected,
               int offset, Stream stream, Cargo cargo) override {
    if (mode_ == Mode::kRecall) return next_++;
    const Stopwatch inside(verbs_ms_);
    const Ticket ticket = inner_.shift(out, in, expected, offset, stream, cargo);
    if (mode_ == Mode::kRecord) {
      verbs_.push_back({'s', shifts_.size()});
      shifts_.push_back({out, in, expected, offset, cargo, ticket, {}});
    }
    return ticket;
  }

  std::span<const std::byte> wait(Ticket ticket, Stream stream) override {
    if (mode_ == Mode::kRecall) return shifts_[static_cast<std::size_t>(ticket)].came;
    const Stopwatch inside(verbs_ms_);
    const auto came = inner_.wait(ticket, stream);
    if (mode_ == Mode::kRecord) note('w', ticket).came.assign(came.begin(), came.end());
    return came;
  }

  void finish(Ticket ticket, Stream stream) override {
    if (mode_ == Mode::kRecall) return;
    const Stopwatch inside(verbs_ms_);
    inner_.finish(ticket, stream);
    if (mode_ == Mode::kRecord) note('f', ticket);
  }

  void progress() noexcept override {
    if (mode_ == Mode::kRecall) return;
    const Stopwatch inside(progress_ms_);
    inner_.progress();
  }

  void abort(std::string_view reason) noexcept override { inner_.abort(reason); }

 private:
  struct Recorded {
    std::span<const std::byte> out;
    std::span<std::byte> in;
    std::size_t expected;
    int offset;
    Cargo cargo;
    Ticket ticket;
    std::vector<std::byte> came;
  };
  struct Verb {
    char kind;
    std::size_t shift;
  };

  /// Adds the time that it lives to a sum.
  class Stopwatch {
   public:
    explicit Stopwatch(double& sum) : sum_(sum) {}
    ~Stopwatch() { sum_ += milliseconds_since(begin_); }
    Stopwatch(const Stopwatch&) = delete;
    Stopwatch& operator=(const Stopwatch&) = delete;

   private:
    double& sum_;
    std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  };

  Recorded& note(char kind, Ticket ticket) {
    std::size_t i = shifts_.size();
    while (shifts_.at(--i).ticket != ticket) {
    }
    verbs_.push_back({kind, i});
    return shifts_[i];
  }

  Communicator& inner_;
  Mode mode_ = Mode::kPassOn;
  Ticket next_ = 0;
  double verbs_ms_ = 0.0;
  double progress_ms_ = 0.0;
  std::vector<Recorded> shifts_;
  std::vector<Verb> verbs_;
};

}  // namespace ringattn::bench
