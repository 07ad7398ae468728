// SPDX-License-Identifier: Apache-2.0
// Tasks of unequal length on the threads of an executor, started strictly in order: a task may
// wait for one with a smaller number, because that one runs already.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "ringattn/attention.h"
#include "ringattn/executor.h"

namespace ringattn::cpu {

/// Calls body(worker, ticket, counts) for every ticket in [0, tasks); worker < executor.threads()
/// names a thread's scratch. The sum of all tiles and pairs counted.
template <class Body>
PassCounts run_tickets(Executor& executor, std::int64_t tasks, const Body& body) {
  std::atomic<std::int64_t> next{0};
  std::atomic<std::int64_t> visited{0};
  std::atomic<std::int64_t> full{0};
  std::atomic<std::int64_t> pairs{0};
  const std::int64_t workers = std::min<std::int64_t>(executor.threads(), tasks);
  executor.run(workers, [&](std::int64_t worker) {
    PassCounts counts;
    for (std::int64_t ticket = next++; ticket < tasks; ticket = next++) {
      body(worker, ticket, counts);
    }
    visited += counts.tiles.visited;
    full += counts.tiles.full;
    pairs += counts.pairs;
  });
  PassCounts sum;
  sum.tiles.visited = visited;
  sum.tiles.full = full;
  sum.pairs = pairs;
  return sum;
}

}  // namespace ringattn::cpu
