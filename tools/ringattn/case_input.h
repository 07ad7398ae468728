// SPDX-License-Identifier: Apache-2.0
// A CASE on the command line, with the options that were given beside it, as the inputs and
// settings that files give. Options win over the case's own fields.
#pragma once

#include <string>

#include "inputs.h"
#include "options.h"
#include "support/cases.h"
#include "support/data.h"

namespace ringattn::tool {

/// Is this word a case? A file or folder of that name wins.
bool is_case(const std::string& word);

/// The case with what --causal, --ring, --seed and the like say. Throws kInvalidArgument.
support::Case case_with_options(support::Case c, const Settings& settings);

/// The settings as if the case's fields had been options.
Settings settings_of(const support::Case& c, const Settings& settings);

/// The case's problem, on the device of the settings.
Problem problem_of(const support::Case& c, const Settings& settings);

/// The case's options with the backend and threads of the settings.
Options options_of(const support::Case& c, const support::CaseData& data, const Settings& settings);

/// The command that repeats a check of this case.
std::string repeat_command(const support::Case& c, const Settings& settings);

}  // namespace ringattn::tool
