// SPDX-License-Identifier: Apache-2.0
// The five commands. Each returns the exit code 0 or 1 and throws for everything else. With a ring,
// every process of it runs the command, and rank 0 prints.
#pragma once

#include "options.h"

namespace ringattn::tool {

int run_command(const Settings& settings, Communicator* ring);
int check_command(const Settings& settings, Communicator* ring);
int bench_command(const Settings& settings, Communicator* ring);
int plan_command(const Settings& settings);
int info_command(const Settings& settings);

}  // namespace ringattn::tool
