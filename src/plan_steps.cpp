// SPDX-License-Identifier: Apache-2.0
// A plan step by step: which pairs of ranks are live, and what each step computes and sends.
#include <vector>

#include "backend.h"
#include "counts.h"
#include "memory.h"
#include "plan.h"
#include "summary.h"

namespace ringattn {
namespace {

/// One shard's part of the global data, and its schedule tables.
struct ShardData {
  std::vector<std::int32_t> ids;        // [B, rows]
  std::vector<std::int64_t> positions;  // [rows]
  std::vector<SegmentBounds> bounds;
  std::vector<Range> spans;

  ShardData(const std::int32_t* global_ids, const std::int64_t* global_positions,
            std::int64_t batch, std::int64_t length, const Positions& rows) {
    if (global_ids != nullptr) {
      for (std::int64_t b = 0; b < batch; ++b) {
        for (std::int64_t i = 0; i < rows.size(); ++i) {
          ids.push_back(global_ids[b * length + rows(i)]);
        }
      }
    }
    if (global_positions != nullptr) {
      for (std::int64_t i = 0; i < rows.size(); ++i) positions.push_back(global_positions[rows(i)]);
    }
  }

  /// Completes `tiles` (and `segments`) with what this shard's rows say.
  void apply(std::int64_t batch, Tiling& tiles, ShardSegments& segments) {
    if (!positions.empty()) {
      tiles.positions = Positions{{{0, tiles.positions.size()}, {}}, 1, positions.data()};
      spans.resize(static_cast<std::size_t>(tiles.count()));
      host_memory().tile_spans(tiles, spans.data(), {});
      tiles.spans = spans.data();
    }
    if (!ids.empty()) {
      bounds.resize(static_cast<std::size_t>(batch * tiles.count()));
      host_memory().segment_bounds(ids.data(), batch, tiles, bounds.data(), {});
      segments = {ids.data(), bounds.data()};
    }
  }
};

ShardData query_data(const Plan& plan, int rank, const GlobalData& data) {
  return {data.q_segment_ids, data.q_positions, plan.problem().batch, plan.problem().query_seq,
          plan.query_rows(rank)};
}

ShardData key_data(const Plan& plan, int rank, const GlobalData& data) {
  return {data.kv_segment_ids, data.kv_positions, plan.problem().batch, plan.problem().key_seq,
          plan.key_rows(rank)};
}

/// Every rank's summary, as the ranks would exchange it.
std::vector<std::byte> all_summaries(const Plan& plan, const GlobalData& data) {
  const std::size_t stride = summary_bytes(plan.problem());
  std::vector<std::byte> table(stride * static_cast<std::size_t>(plan.world()));
  for (int r = 0; r < plan.world(); ++r) {
    const ShardData q = query_data(plan, r, data);
    const ShardData k = key_data(plan, r, data);
    const auto pointer = [](const auto& v) { return v.empty() ? nullptr : v.data(); };
    summarise(plan.problem().batch, plan.query_rows(r).size(), plan.key_rows(r).size(),
              pointer(q.ids), pointer(k.ids), pointer(q.positions), pointer(k.positions),
              table.data() + static_cast<std::size_t>(r) * stride);
  }
  return table;
}

/// Bytes and hops of one step; the ring counts the same when it sends them.
void add_traffic(const Plan& plan, Pass pass, const Route& route, std::size_t s,
                 PassCounts& counts) {
  const Step& step = route.steps[s];
  if (step.offset == 0) return;
  const int direction = step.offset > 0 ? 1 : -1;
  bool sends = step.sends;
  if (step.sends) {
    const int block = owner_at(route.rank, step.offset - direction, plan.world());
    counts.bytes += static_cast<std::int64_t>(plan.block_layout(block).bytes);
    if (pass == Pass::kBackward && step.offset != direction) {
      counts.bytes += static_cast<std::int64_t>(plan.sums_bytes(block));
    }
  }
  if (pass == Pass::kBackward && route.stops_here(s)) {
    counts.bytes += static_cast<std::int64_t>(plan.sums_bytes(step.owner));
    sends = true;
  }
  counts.hops += sends ? 1 : 0;
}

}  // namespace

LiveMatrix Plan::live_matrix(const GlobalData& data) const {
  LiveMatrix live(world_);
  for (int q = 0; q < world_; ++q) {
    for (int k = 0; k < world_; ++k) {
      const bool rows = problem_.batch > 0 && query_rows(q).size() > 0 && key_rows(k).size() > 0;
      live.set(
          q, k,
          rows && (options_.explicit_positions ||
                   pair_schedule(Pass::kForward, q, k).live(problem_.batch, problem_.query_heads)));
    }
  }
  if (data.q_segment_ids != nullptr || data.q_positions != nullptr) {
    const std::vector<std::byte> table = all_summaries(*this, data);
    apply_summaries(*this, table.data(), summary_bytes(problem_), live);
  }
  return live;
}

std::vector<StepCounts> Plan::steps(Pass pass, int rank, const LiveMatrix& live,
                                    const GlobalData& data) const {
  const Route route = make_route(live, rank);
  ShardData queries = query_data(*this, rank, data);
  std::vector<StepCounts> result;
  for (std::size_t s = 0; s < route.steps.size(); ++s) {
    StepCounts counts{route.steps[s], {}};
    if (counts.step.live) {
      ShardData keys = key_data(*this, counts.step.owner, data);
      PairSchedule schedule = pair_schedule(pass, rank, counts.step.owner);
      queries.apply(problem_.batch, schedule.queries, schedule.query_segments);
      keys.apply(problem_.batch, schedule.keys, schedule.key_segments);
      counts.counts = count_tiles(schedule, problem_, pass);
    }
    add_traffic(*this, pass, route, s, counts.counts);
    result.push_back(counts);
  }
  return result;
}

PassCounts Plan::counts(Pass pass, int rank, const GlobalData& data) const {
  PassCounts total;
  for (const StepCounts& s : steps(pass, rank, data)) total += s.counts;
  total.tiles.skipped = all_tiles(pass, rank) - total.tiles.visited;
  return total;
}

}  // namespace ringattn
