// SPDX-License-Identifier: Apache-2.0
// `ringattn run` over processes: each reads its own rows of IN and writes its own rows of OUT. None
// ever holds a global tensor.
#pragma once

#include <string>

#include "inputs.h"
#include "options.h"
#include "ringattn/communicator.h"

namespace ringattn::tool {

/// This rank's rows of IN, checked on every rank. Throws Agreed.
Inputs read_own_rows(const std::string& source, const Settings& settings, Communicator& ring);

/// As run_command(); rank 0 prints. Throws Agreed, or kCommunication for a lost rank.
int run_rows(const Settings& settings, Communicator& ring);

}  // namespace ringattn::tool
