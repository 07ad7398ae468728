// SPDX-License-Identifier: Apache-2.0
// Where CPU work runs: "call f(i) once for every i < n". Results never depend on which one.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace ringattn {

/// A borrowed callable void(int64), without allocation.
class TaskRef {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, TaskRef>>>
  TaskRef(const F& f)  // NOLINT(google-explicit-constructor)
      : object_(&f), call_([](const void* o, std::int64_t i) { (*static_cast<const F*>(o))(i); }) {}
  void operator()(std::int64_t i) const { call_(object_, i); }

 private:
  const void* object_;
  void (*call_)(const void*, std::int64_t);
};

/// Implement this to run ringattn's work on your own threads.
class Executor {
 public:
  virtual ~Executor() = default;

  /// How many calls may run at once; the size of per-thread scratch. At least 1.
  virtual int threads() const noexcept = 0;

  /// Calls task(i) once for every i in [0, n), in any order, on at most threads() threads at
  /// once for this call, and returns when all are done. Safe to call from several threads. Tasks
  /// throw nothing and never call run() themselves; a task may wait for one that has started.
  virtual void run(std::int64_t n, TaskRef task) = 0;
};

/// A pool of `threads` threads (0: one per core that sched_getaffinity() allows the calling
/// thread). They inherit its affinity, so taskset, cpusets, mpirun's binding and numactl decide
/// where they run and, by first touch, on which NUMA node a workspace lies that a call allocates;
/// nothing is bound here. Ranks of a local ring that share it never run on more than that many
/// threads together.
std::shared_ptr<Executor> make_thread_pool(int threads = 0);

/// The pool that everybody shares who names no executor: make_thread_pool(0) at its first use.
std::shared_ptr<Executor> default_executor();

}  // namespace ringattn
