// SPDX-License-Identifier: Apache-2.0
// Are problem and options equal on every rank? Asked once, before any data moves.
#pragma once

#include <string_view>

#include "plan.h"
#include "ringattn/communicator.h"
#include "ringattn/version.h"

namespace ringattn {

/// Throws kCommunication on every rank, naming the field and both values, if two ranks differ.
/// Collective.
void compare_plans(Communicator& ring, const Plan& plan,
                   std::string_view version = RINGATTN_VERSION);

}  // namespace ringattn
