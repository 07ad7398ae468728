// SPDX-License-Identifier: Apache-2.0
#include "xla/failures.h"

#include <atomic>
#include <mutex>

#include "ringattn/error.h"

namespace ringattn::ffi {
namespace {

struct Failure {
  std::mutex mutex;
  std::string message;
  std::atomic<int> asked_rank{-1};
  std::atomic<int> asked_offset{0};
};

/// Never destroyed: threads of XLA may outlive static objects.
Failure& failure() {
  static Failure& one = *new Failure;
  return one;
}

}  // namespace

void remember_failure(const std::string& message) {
  const std::lock_guard lock(failure().mutex);
  failure().message = message;
}

std::string remembered_failure() {
  const std::lock_guard lock(failure().mutex);
  return failure().message.empty() ? "a rank in another process failed" : failure().message;
}

void fail_if_asked(int rank, int offset) {
  if (failure().asked_rank.load() != rank || failure().asked_offset.load() != offset) return;
  throw Error(ErrorCode::kInternal, "rank " + std::to_string(rank) + " was told to fail");
}

}  // namespace ringattn::ffi

extern "C" {

/// For tests, so not in ringattn.h. From now on the hop of `rank` to the block of rank - `offset`
/// fails; rank -1: none does.
RINGATTN_EXPORT void ringattn_test_fail(int32_t rank, int32_t offset);

void ringattn_test_fail(int32_t rank, int32_t offset) {
  ringattn::ffi::failure().asked_offset = offset;
  ringattn::ffi::failure().asked_rank = rank;
}
}
