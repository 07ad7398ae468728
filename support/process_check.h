// SPDX-License-Identifier: Apache-2.0
// check_problem() over a ring of processes: every rank computes, rank 0 judges.
#pragma once

#include <functional>

#include "support/conformance.h"
#include "support/rank_job.h"

namespace ringattn::support {

/// Collective. `make` gives this rank's part of the job; `expected` is called on rank 0 alone,
/// while the others wait. The report has tensors and verdicts on rank 0; on the others, whether all
/// is well.
CheckReport check_over_processes(
    Communicator& ring, const Problem& problem, const Options& options, bool backward,
    const CheckSettings& settings,
    const std::function<RankJob(const Options&, const RingSettings&)>& make,
    const std::function<Expected()>& expected);

}  // namespace ringattn::support
