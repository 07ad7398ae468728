// SPDX-License-Identifier: Apache-2.0
// A case's data against float64, on the ring that the command line asks for.
#pragma once

#include "ringattn/communicator.h"
#include "support/cases.h"
#include "support/conformance.h"
#include "support/data.h"

namespace ringattn::tool {

/// `problem`: the case's, on the device that is asked for. `ring`: of processes, or null for one of
/// threads. Every process makes the same random data.
support::CheckReport check_data(const support::Case& c, const Problem& problem,
                                const support::CaseData& data, const Options& options,
                                const support::CheckSettings& how, Communicator* ring);

}  // namespace ringattn::tool
