// SPDX-License-Identifier: Apache-2.0
// The tool's inputs through the ring that its options ask for, with a progress bar.
#pragma once

#include <functional>
#include <string>

#include "inputs.h"
#include "options.h"
#include "support/ring_run.h"

namespace ringattn::tool {

/// Views of the global tensors; absent ones stay absent.
support::RingInputs ring_inputs(const Inputs& inputs);

/// What the command line says of the passes.
support::RingSettings ring_settings(const Settings& settings);

/// Calls `work`; errors about a tensor of IN then name `source`: the library knows no files.
void naming_source(const std::string& source, const std::function<void()>& work);

/// Forward, and backward with --backward. Errors about a tensor of IN name `source`.
support::RingResult pass_through_ring(const Inputs& inputs, const Settings& settings,
                                      const std::string& source);

}  // namespace ringattn::tool
