// SPDX-License-Identifier: Apache-2.0
// XLA's own thread pool as an Executor, so that eight virtual devices share one pool.
#pragma once

#include <cstdint>

#include "ringattn/executor.h"
#include "xla/ffi/api/ffi.h"

namespace ringattn::ffi {

/// Borrows the pool of one call. run() never waits for a task that has not started: whoever calls
/// it does what nobody else has begun, so it ends even if every thread of the pool is taken.
class XlaThreads final : public Executor {
 public:
  explicit XlaThreads(xla::ffi::ThreadPool pool);

  int threads() const noexcept override { return threads_; }
  void run(std::int64_t n, TaskRef task) override;

 private:
  xla::ffi::ThreadPool pool_;
  int threads_;
};

}  // namespace ringattn::ffi
