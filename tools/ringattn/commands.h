// SPDX-License-Identifier: Apache-2.0
// The five commands. Each returns the exit code 0 or 1 and throws for everything else.
#pragma once

#include "options.h"

namespace ringattn::tool {

int run_command(const Settings& settings);
int check_command(const Settings& settings);
int bench_command(const Settings& settings);
int plan_command(const Settings& settings);
int info_command(const Settings& settings);

}  // namespace ringattn::tool
