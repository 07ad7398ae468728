// SPDX-License-Identifier: Apache-2.0
// Tasks of unequal length on the threads of an executor, started strictly in order: a task may
// wait for one with a smaller number, because that one runs already.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "ringattn/attention.h"
#include "ringattn/executor.h"

namespace ringattn::cpu {

/// Who works: as many as calls may run at once, each with scratch and counts of its own.
class Workers {
 public:
  explicit Workers(std::int64_t n) : workers_(static_cast<std::size_t>(n)) {}

  /// A worker that nobody is; the one that this thread was last, if it can, for what it left in
  /// the caches.
  std::int64_t enter() {
    thread_local std::int64_t last = 0;
    for (std::int64_t n = last;; ++n) {
      n = n < size() ? n : 0;
      if (!at(n).taken.exchange(true, std::memory_order_acquire)) return last = n;
    }
  }

  void leave(std::int64_t n) { at(n).taken.store(false, std::memory_order_release); }

  PassCounts& counts(std::int64_t n) { return at(n).counts; }

  PassCounts total() const {
    PassCounts sum;
    for (const Worker& worker : workers_) sum += worker.counts;
    return sum;
  }

 private:
  struct alignas(64) Worker {
    std::atomic<bool> taken{false};
    PassCounts counts;
  };
  std::int64_t size() const { return static_cast<std::int64_t>(workers_.size()); }
  Worker& at(std::int64_t n) { return workers_[static_cast<std::size_t>(n)]; }

  std::vector<Worker> workers_;
};

/// Calls body(worker, ticket, counts) for every ticket in [0, tasks); worker < executor.threads()
/// names a thread's scratch. Every ticket is a task of the executor, so that ranks that share it
/// can take each other's. The sum of all tiles and pairs counted.
template <class Body>
PassCounts run_tickets(Executor& executor, std::int64_t tasks, const Body& body) {
  std::atomic<std::int64_t> next{0};
  Workers workers(std::min<std::int64_t>(executor.threads(), tasks));
  executor.run(tasks, [&](std::int64_t) {
    const std::int64_t worker = workers.enter();
    body(worker, next++, workers.counts(worker));
    workers.leave(worker);
  });
  return workers.total();
}

}  // namespace ringattn::cpu
