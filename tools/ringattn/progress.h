// SPDX-License-Identifier: Apache-2.0
// A progress bar on stderr: only on a terminal, only for work that lasts over a second, never on
// stdout.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace ringattn::tool {

class Progress {
 public:
  /// `wanted` false (--quiet), or no terminal: does nothing.
  explicit Progress(bool wanted);
  ~Progress();  // clears the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// From any thread: `done` of `total` steps of `what`.
  void set(const std::string& what, int done, int total);

 private:
  void draw_until_stopped();

  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopped_ = false;
  std::string what_;
  int done_ = 0;
  int total_ = 0;
  std::thread thread_;  // last: it uses the others
};

/// "forward  [#####-----] 2/4  3.1 s"
std::string progress_line(const std::string& what, int done, int total, double seconds);

}  // namespace ringattn::tool
