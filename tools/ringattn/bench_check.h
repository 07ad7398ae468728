// SPDX-License-Identifier: Apache-2.0
// A benchmark's result is checked before it is timed. Float64 truth of a large case takes hours,
// so large lengths are cut down for the check; every option, dtype, head and dim stays.
#pragma once

#include "options.h"
#include "ringattn/communicator.h"
#include "support/cases.h"

namespace ringattn::tool {

/// The case itself if its truth is quick, else with shorter sequences.
support::Case checkable(const support::Case& c);

/// Largest difference from float64 of any tensor of checkable(c). Throws Error(kInternal) with
/// the command that repeats it if the check fails.
double checked_error(const support::Case& c, const Settings& settings, Communicator* ring);

}  // namespace ringattn::tool
