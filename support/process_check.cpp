// SPDX-License-Identifier: Apache-2.0
#include "support/process_check.h"

#include <utility>

namespace ringattn::support {

CheckReport check_over_processes(
    Communicator& ring, const Problem& problem, const Options& options, bool backward,
    const CheckSettings& settings,
    const std::function<RankJob(const Options&, const RingSettings&)>& make,
    const std::function<Expected()>& expected) {
  const RingSettings run = settings.run(backward);
  const auto once = [&](const Options& how) {
    RankJob job = make(how, run);
    job.forward();
    if (backward) job.backward();
    return job.result();
  };
  Options how = settings.chosen(options);
  RingResult result = once(how);
  RingResult again;
  if (settings.twice) {
    if (settings.other_executor != nullptr) how.executor = settings.other_executor;
    again = once(how);
  }
  CheckReport report;
  while_others_wait(ring, settings.timeout, [&] {
    if (ring.rank() != 0) return;
    report = judge(expected(), problem, options, {}, std::move(result),
                   settings.twice ? &again : nullptr);
  });
  const bool ok = gather_all(ring, report.ok() ? 1 : 0)[0] != 0;
  if (ring.rank() == 0) return report;
  report.result = std::move(result);
  if (!ok) report.failures.emplace_back("rank 0 found a difference");
  return report;
}

}  // namespace ringattn::support
