// SPDX-License-Identifier: Apache-2.0
// The GPUs of this machine, as far as the tool speaks of them. The one file that knows whether the
// build has CUDA.
#pragma once

#include <nlohmann/json.hpp>

namespace ringattn::tool {

/// Was this program built with CUDA?
bool built_with_cuda();

/// One object per GPU that the backend cuda could use: name, architecture, memory, driver, clocks.
nlohmann::json gpus_json();

/// The clock of the first GPU's multiprocessors at this moment, in MHz; null if nobody tells.
nlohmann::json sm_clock_mhz();

}  // namespace ringattn::tool
