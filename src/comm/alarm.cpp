// SPDX-License-Identifier: Apache-2.0
#include "comm/alarm.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>

#include "ringattn/error.h"

namespace ringattn {
namespace {

using std::chrono::milliseconds;

// Waits end within the deadline and one second: this long to find the culprit, and to be heard.
// A rank that waits answers within a scheduling delay, so the rest is room for a loaded machine.
constexpr milliseconds kInquiry{450};
constexpr milliseconds kAnswerTime{350};
constexpr milliseconds kFarewell{200};

std::string name_of(int rank) { return "rank " + std::to_string(rank); }

template <std::size_t N>
std::string_view copy_text(std::string_view from, std::array<char, N>& to) {
  const std::size_t length = std::min(from.size(), N - 1);
  std::memcpy(to.data(), from.data(), length);
  to[length] = '\0';
  return {to.data(), length};
}

}  // namespace

void Pause::operator()() {
  constexpr int kSpins = 50;     // some 10 us: an answer that is on its way
  constexpr int kYields = 1000;  // others may need this core
  constexpr std::chrono::microseconds kSleep{100};
  if (++turns_ <= kSpins) return;
  if (turns_ <= kYields) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(kSleep);
  }
}

void Alarm::throw_if_raised() const {
  if (!raised()) return;
  throw Error(ErrorCode::kCommunication, name_of(culprit_) + " " + std::string(reason_));
}

void Alarm::listen() {
  Notice notice;
  while (mail_.receive(notice)) {
    switch (notice.kind) {
      case Notice::kQuestion: {
        Notice answer;
        answer.kind = Notice::kAnswer;
        answer.from = rank_;
        answer.about = waits_for_;
        mail_.send(notice.from, answer);
        break;
      }
      case Notice::kAnswer: answer_ = notice; break;
      case Notice::kAbort: {
        heard_[static_cast<std::size_t>(notice.from)] = 1;
        if (!raised()) {
          culprit_ = notice.about;
          notice.text.back() = '\0';
          reason_ = copy_text(notice.text.data(), text_);
        }
        Notice heard;
        heard.kind = Notice::kHeard;
        heard.from = rank_;
        mail_.send(notice.from, heard);
        break;
      }
      case Notice::kHeard: heard_[static_cast<std::size_t>(notice.from)] = 1; break;
      default: break;
    }
  }
}

void Alarm::until(int other, int all, const std::function<int()>& arrived) {
  waits_for_ = other;
  int before = arrived();
  Clock::time_point end = Clock::now() + timeout_;
  Pause pause;
  while (before < all && !raised()) {
    listen();
    const int now = arrived();
    if (now > before) {
      before = now;
      end = Clock::now() + timeout_;
      pause.reset();
    } else if (Clock::now() >= end) {
      find_culprit(other, [&] { return arrived() >= all; });
      break;
    } else {
      pause();
    }
  }
  waits_for_ = -1;
}

/// Has `suspect` answered, or has the question become needless, before `end`?
bool Alarm::ask(int suspect, Clock::time_point end, const std::function<bool()>& done) {
  Notice question;
  question.from = rank_;
  mail_.send(suspect, question);
  answer_.from = -1;
  for (Pause pause; Clock::now() < end; pause()) {
    listen();
    if (answer_.from == suspect || raised() || done()) return true;
  }
  return false;
}

void Alarm::find_culprit(int other, const std::function<bool()>& done) {
  const Clock::time_point end = Clock::now() + kInquiry;
  const std::string waited = std::to_string(timeout_.count()) + " ms";
  int suspect = other;
  for (std::size_t asked = 0; asked < heard_.size(); ++asked) {
    const bool answered = ask(suspect, std::min(end, Clock::now() + kAnswerTime), done);
    if (raised() || done()) return;
    if (!answered) {
      return raise(suspect, "is lost or silent: " + name_of(rank_) + " waited " + waited + " for " +
                                name_of(other) + ", and " + name_of(suspect) + " does not answer");
    }
    if (answer_.about < 0) {
      return raise(suspect, "is too slow: " + name_of(rank_) + " waited " + waited + " for " +
                                name_of(other) + ", and " + name_of(suspect) +
                                " answers but has not sent");
    }
    suspect = answer_.about;
    if (suspect == rank_) break;
  }
  raise(other, "and others wait for each other: " + name_of(rank_) + " waited " + waited +
                   "; do all ranks make the same calls?");
}

void Alarm::raise(int culprit, std::string_view text) {
  if (raised()) return;
  culprit_ = culprit;
  reason_ = copy_text(text, text_);
  Notice abort;
  abort.kind = Notice::kAbort;
  abort.from = rank_;
  abort.about = culprit;
  abort.text = text_;
  heard_[static_cast<std::size_t>(rank_)] = 1;
  for (std::size_t r = 0; r < heard_.size(); ++r) {
    if (heard_[r] == 0) mail_.send(static_cast<int>(r), abort);
  }
  heard_[static_cast<std::size_t>(culprit)] = 1;  // told too, should it wake up, but not awaited
  const Clock::time_point end = Clock::now() + kFarewell;
  for (Pause pause; Clock::now() < end; pause()) {
    listen();
    if (std::find(heard_.begin(), heard_.end(), 0) == heard_.end()) return;
  }
}

}  // namespace ringattn
