// SPDX-License-Identifier: Apache-2.0
// A rank of a ring that fails must go on sending, or XLA ends the process in which others wait for
// it. Its results become NaN, it remembers why, and at the end of the pass, when all ranks know
// that one has failed, all of them return an error together.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "convert.h"
#include "ringattn.h"
#include "xla/operands.h"

namespace ringattn::ffi {

/// What becomes the error of all ranks. One that lives in another process has no more to say.
void remember_failure(const std::string& message);
std::string remembered_failure();

/// Throws kInternal in the hop that a test has chosen. No header declares how.
void fail_if_asked(int rank, int offset);

/// The status after a hop whose rank had the status `before` (0: all is well). Work that fails, or
/// is not tried any more, leaves NaN in `results`.
template <class Work>
std::int32_t run_in_ring(std::int32_t before, std::initializer_list<const Operand*> results,
                         Work work) {
  if (before == 0) {
    ringattn_error error;
    if (guarded(&error, work) == RINGATTN_OK) return 0;
    remember_failure(error.message);
  }
  for (const Operand* result : results) {
    if (result->present()) result->fill_with_nan();
  }
  return 1;
}

}  // namespace ringattn::ffi
