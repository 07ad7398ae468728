// SPDX-License-Identifier: Apache-2.0
#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace ringattn::tool {

std::string progress_line(const std::string& what, int done, int total, double seconds) {
  constexpr int kWidth = 30;
  const int filled = total > 0 ? kWidth * std::clamp(done, 0, total) / total : 0;
  const std::string bar = std::string(static_cast<std::size_t>(filled), '#') +
                          std::string(static_cast<std::size_t>(kWidth - filled), '-');
  return fmt::format("{} [{}] {}/{}  {:.1f} s", what, bar, done, total, seconds);
}

Progress::Progress(bool wanted) {
  if (wanted && ::isatty(STDERR_FILENO) != 0) {
    thread_ = std::thread([this] { draw_until_stopped(); });
  }
}

Progress::~Progress() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  stop_.notify_one();
  thread_.join();
}

void Progress::set(const std::string& what, int done, int total) {
  const std::lock_guard lock(mutex_);
  what_ = what;
  done_ = done;
  total_ = total;
}

void Progress::draw_until_stopped() {
  using Clock = std::chrono::steady_clock;
  constexpr auto kPatience = std::chrono::seconds(1);
  constexpr auto kRefresh = std::chrono::milliseconds(200);
  const Clock::time_point begin = Clock::now();
  std::unique_lock lock(mutex_);
  bool drawn = false;
  while (!stop_.wait_for(lock, drawn ? Clock::duration(kRefresh) : Clock::duration(kPatience),
                         [this] { return stopped_; })) {
    if (what_.empty()) continue;
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    // Erases the rest of an older, longer line.
    fmt::print(stderr, "\r{}\x1b[K", progress_line(what_, done_, total_, seconds));
    std::fflush(stderr);
    drawn = true;
  }
  if (drawn) fmt::print(stderr, "\r\x1b[K");
}

}  // namespace ringattn::tool
