// SPDX-License-Identifier: Apache-2.0
#include "check_data.h"

#include "support/process_check.h"

namespace ringattn::tool {

support::CheckReport check_data(const support::Case& c, const Problem& problem,
                                const support::CaseData& data, const Options& options,
                                const support::CheckSettings& how, Communicator* ring) {
  const support::RingInputs inputs = data.inputs();
  if (ring == nullptr) {
    return support::check_problem(problem, options, inputs, c.ring, c.backward, how);
  }
  return support::check_over_processes(
      *ring, problem, options, c.backward, how,
      [&](const Options& chosen, const support::RingSettings& run) {
        return support::RankJob::of_global(*ring, problem, chosen, inputs, run);
      },
      [&] { return support::make_expected(problem, options, inputs, c.backward); });
}

}  // namespace ringattn::tool
