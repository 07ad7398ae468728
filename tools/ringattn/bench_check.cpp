// SPDX-License-Identifier: Apache-2.0
#include "bench_check.h"

#include <algorithm>

#include "case_input.h"
#include "check_data.h"
#include "ringattn/error.h"
#include "support/conformance.h"

namespace ringattn::tool {
namespace {

// Multiply-adds of the float64 program: some seconds of plain loops.
constexpr double kAffordable = 3e8;
constexpr std::int64_t kShortest = 64;  // rows: still several tiles and shards

double cost(const support::Case& c) {
  const double passes = c.backward ? 4.0 : 1.0;
  return passes * static_cast<double>(c.batch) * static_cast<double>(c.query_heads) *
         static_cast<double>(c.query_seq) * static_cast<double>(c.key_seq) *
         static_cast<double>(c.head_dim + c.value_dim);
}

}  // namespace

support::Case checkable(const support::Case& c) {
  support::Case small = c;
  while (cost(small) > kAffordable && std::max(small.query_seq, small.key_seq) > kShortest) {
    // Windows and chunks shrink with the sequence, so that they still cut it.
    small.query_seq = std::max<std::int64_t>(small.query_seq / 2, std::min(c.query_seq, kShortest));
    small.key_seq = std::max<std::int64_t>(small.key_seq / 2, std::min(c.key_seq, kShortest));
    if (small.chunk) small.chunk = std::max<std::int64_t>(*small.chunk / 2, 1);
    if (small.window && small.window->first) small.window->first = *small.window->first / 2;
    if (small.window && small.window->second) small.window->second = *small.window->second / 2;
  }
  return small;
}

double checked_error(const support::Case& c, const Settings& settings, Communicator* ring) {
  const support::Case small = checkable(c);
  const support::CaseData data = support::make_data(small);
  support::CheckSettings how;
  how.backend = settings.backend_option();
  how.timeout = settings.timeout;
  const support::CheckReport report = check_data(small, problem_of(small, settings), data,
                                                 options_of(small, data, settings), how, ring);
  if (!report.ok()) {
    throw Error(ErrorCode::kInternal,
                "bench: the result is wrong, so it is not timed: " + report.message() +
                    "repeat with: " + repeat_command(small, settings));
  }
  return report.max_error();
}

}  // namespace ringattn::tool
