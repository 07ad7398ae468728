// SPDX-License-Identifier: Apache-2.0
// What `run` and `check` say about a finished ring: the JSON object and the table. It prints
// nothing itself.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "inputs.h"
#include "options.h"
#include "support/ring_run.h"

namespace ringattn::tool {

/// [B, Sq, H, Dv].
std::vector<std::int64_t> out_shape(const Inputs& inputs);

/// The instruction set asked for, or the backend's first; "portable" if it names none.
std::string isa_of(const Settings& settings, const std::string& backend);

/// All ranks together: hops of the busiest one, everything else summed.
PassCounts total(const std::vector<PassCounts>& ranks);

/// {"version", "options", "shapes", "backend", "ring", "forward", "backward"}.
nlohmann::json report_json(const Settings& settings, const Inputs& inputs,
                           const support::RingResult& result);

/// The same for people: some lines.
std::string report_text(const Settings& settings, const Inputs& inputs,
                        const support::RingResult& result);

}  // namespace ringattn::tool
