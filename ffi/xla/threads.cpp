// SPDX-License-Identifier: Apache-2.0
#include "xla/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>

#include "xla/float_environment.h"

namespace ringattn::ffi {
namespace {

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(CPU_COUNT(&set), 1) : 1;
}

/// One run(). A helper that comes late finds nothing to claim and touches only this.
struct Job {
  Job(TaskRef task_in, std::int64_t n_in) : task(task_in), n(n_in) {}

  void work() {
    for (std::int64_t i = next++; i < n; i = next++) {
      task(i);
      if (++done == n) done.notify_all();
    }
  }

  TaskRef task;
  std::int64_t n;
  std::atomic<std::int64_t> next{0};
  std::atomic<std::int64_t> done{0};
};

}  // namespace

XlaThreads::XlaThreads(xla::ffi::ThreadPool pool) : pool_(pool) {
  // The pool has a thread per virtual device, which may be more than there are cores.
  static const int cores = available_cores();
  threads_ = static_cast<int>(std::clamp<std::int64_t>(pool_.num_threads(), 1, cores));
}

void XlaThreads::run(std::int64_t n, TaskRef task) {
  if (n <= 0) return;
  const std::int64_t helpers = std::min<std::int64_t>(n, threads_) - 1;
  if (helpers == 0) {
    for (std::int64_t i = 0; i < n; ++i) task(i);
    return;
  }
  const auto job = std::make_shared<Job>(task, n);
  for (std::int64_t h = 0; h < helpers; ++h) {
    auto help = [job] {
      const DefaultFloats floats;
      job->work();
    };
    pool_.Schedule(std::move(help));
  }
  job->work();
  for (std::int64_t done = job->done; done < n; done = job->done) job->done.wait(done);
}

}  // namespace ringattn::ffi
