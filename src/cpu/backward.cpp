// SPDX-License-Identifier: Apache-2.0
// The backward pass on the CPU (FlashAttention-2, Dao 2023, arXiv 2307.08691, algorithm 2): P is
// recomputed from lse. Each task owns one (batch row, kv head, key tile) and its dK and dV; dQ
// tiles are shared, and take their additions in the order of key tiles, so that no result depends
// on how tasks are spread. Tasks are started in that order: whoever waits, waits for a task that
// runs.
#include <algorithm>

#include "counts.h"
#include "cpu/backward_rows.h"
#include "cpu/backward_task.h"
#include "cpu/cpu.h"
#include "cpu/tickets.h"
#include "workspace.h"

namespace ringattn::cpu {
namespace {

std::int64_t state_rows(const Plan& plan) {
  const Problem& p = plan.problem();
  return p.batch * p.query_heads * plan.query_rows(plan.rank()).size();
}

/// Room for `count` tiles of at most `rows` rows of `columns` values.
PackedRows carve_rows(Carver& carver, const Operands& o, std::int64_t count, std::int64_t rows,
                      std::int64_t columns) {
  PackedRows x{};
  x.left_row = row_stride(o.words(columns));
  x.left_size = rows * x.left_row;
  x.left = carver.take_array<float>(count * x.left_size);
  x.right_row = row_stride(columns);
  x.right_size = o.words(rows) * x.right_row;
  x.right = o.pairs ? carver.take_array<float>(count * x.right_size) : x.left;
  x.finite = carver.take_array<std::uint8_t>(count);
  return x;
}

BackwardPieces carve(const Plan& plan, Carver& carver) {
  const Problem& p = plan.problem();
  const Operands o(plan);
  const Positions queries = plan.query_rows(plan.rank());
  const std::int64_t heads = p.batch * p.query_heads;
  const std::int64_t most = plan.tiles(Pass::kBackward).queries;
  const std::int64_t tiles = Tiling{queries, most, nullptr}.count();
  const std::int64_t rows = std::min(most, queries.size());
  BackwardPieces w{};
  // With explicit positions there is one run, and at most one tile fewer.
  w.progress = carver.take_array<Progress>(heads * (tiles + 1));
  w.query = carve_rows(carver, o, heads * tiles, rows, p.head_dim);
  w.dout = carve_rows(carver, o, heads * tiles, rows, p.value_dim);
  Carver one;
  carve_task(plan, one);
  w.scratch_bytes = one.used();
  w.scratch = carver.take(w.scratch_bytes * static_cast<std::size_t>(threads(plan))).data();
  return w;
}

}  // namespace

std::size_t backward_workspace(const Plan& plan) {
  Carver measure;
  carve(plan, measure);
  return measure.used();
}

std::size_t backward_state(const Plan& plan) {
  return static_cast<std::size_t>(state_rows(plan) * (padded(plan.problem().head_dim) + 2)) *
         sizeof(float);
}

PassCounts backward(const BackwardStep& step) {
  const Problem& p = step.plan.problem();
  const Operands operands(step.plan);
  Carver carver(step.workspace);
  BackwardPieces w = carve(step.plan, carver);
  w.dquery = reinterpret_cast<float*>(step.state.data());
  w.lse = w.dquery + state_rows(step.plan) * padded(p.head_dim);
  w.delta = w.lse + state_rows(step.plan);
  if (step.first) prepare(step, w, operands.kernels);
  if (!step.continued) pack_rows(step, w, operands);
  const std::int64_t heads = p.batch * p.query_heads;
  for (std::int64_t n = 0; n < heads * step.schedule.queries.count(); ++n) {
    std::construct_at(w.progress + n, -1);
  }
  const PackedBlock block(step.plan, Pass::kBackward);
  const std::int64_t planes = p.batch * p.kv_heads;
  const std::int64_t tickets = planes * step.schedule.keys.count();
  PassCounts counts = run_tickets(
      step.executor, tickets, [&](std::int64_t worker, std::int64_t ticket, PassCounts& own) {
        Carver scratch(
            {w.scratch + static_cast<std::size_t>(worker) * w.scratch_bytes, w.scratch_bytes});
        // Key tiles in order, neighbours in different heads: threads seldom meet at one
        // dQ tile.
        const std::int64_t next = ticket + step.executor.threads();
        const bool packs = step.shared == nullptr && next < tickets;
        Task(step, w, carve_task(step.plan, scratch), operands, block,
             {ticket % planes, ticket / planes}, {next % planes, packs ? next / planes : -1})
            .run(own);
      });
  if (step.last) finish_queries(step, w, operands.kernels);
  counts.flops = flops(p, Pass::kBackward, counts.pairs);
  return counts;
}

}  // namespace ringattn::cpu
