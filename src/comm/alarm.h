// SPDX-License-Identifier: Apache-2.0
// How ranks in several processes find out that one of them is gone, and all name the same one. It
// knows short notices, never data, and nothing of who carries them.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace ringattn {

/// A short message beside the data. Fixed size, so that it is sent as it is.
struct Notice {
  enum Kind : std::int32_t { kQuestion, kAnswer, kAbort, kHeard };

  std::int32_t kind = kQuestion;
  std::int32_t from = -1;
  std::int32_t about = -1;  // of an answer: whom its sender waits for; of an abort: who failed
  std::array<char, 500> text{};
};

/// What carries notices. Neither verb may block.
class Mail {
 public:
  virtual ~Mail() = default;
  virtual void send(int to, const Notice& notice) = 0;
  virtual bool receive(Notice& notice) = 0;  // false: nothing there
};

/// One rank's view of the ring's health. Every wait of a communicator runs through until(). A wait
/// that lasts too long asks: the peer, whom that one waits for, and so on, until somebody does not
/// answer or waits for nobody. That rank is named to all others.
class Alarm {
 public:
  Alarm(Mail& mail, int rank, int size, std::chrono::milliseconds timeout)
      : mail_(mail), rank_(rank), timeout_(timeout), heard_(static_cast<std::size_t>(size), 0) {}

  bool raised() const { return culprit_ >= 0; }

  /// Throws kCommunication, naming the culprit, if the alarm was raised here or elsewhere.
  void throw_if_raised() const;

  /// Answers questions and takes note of an alarm raised elsewhere.
  void listen();

  /// Waits until `arrived()` is as high as `all`, or the alarm is raised. Only rank `other` can
  /// bring it about. Each increase of arrived() starts the deadline anew.
  void until(int other, int all, const std::function<int()>& arrived);

  /// Tells everybody that `culprit` failed, and why; the first alarm counts. Lingers for a moment
  /// so that it is heard before this process ends.
  void raise(int culprit, std::string_view text);

 private:
  using Clock = std::chrono::steady_clock;

  void find_culprit(int other, const std::function<bool()>& done);
  bool ask(int suspect, Clock::time_point end, const std::function<bool()>& done);

  Mail& mail_;
  int rank_;
  std::chrono::milliseconds timeout_;
  int waits_for_ = -1;
  int culprit_ = -1;
  std::string_view reason_;  // in text_
  std::array<char, 500> text_{};
  Notice answer_;            // the latest
  std::vector<char> heard_;  // who is known to know of the alarm
};

/// Waits a little longer each time: spins, then yields, then sleeps, at most 0.1 ms.
class Pause {
 public:
  void reset() { turns_ = 0; }
  void operator()();

 private:
  int turns_ = 0;
};

}  // namespace ringattn
