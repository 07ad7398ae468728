// SPDX-License-Identifier: Apache-2.0
// The forward pass on the CPU (FlashAttention-2, Dao 2023, arXiv 2307.08691, algorithm 1): keys
// and values are packed once per step and shared by all query tiles and heads of a group; each
// task owns some (batch row, head, query tile), so no result depends on how tasks are spread.
#include <algorithm>
#include <optional>

#include "counts.h"
#include "cpu/cpu.h"
#include "cpu/forward_unit.h"
#include "cpu/packed_block.h"
#include "cpu/tickets.h"
#include "workspace.h"

namespace ringattn::cpu {
namespace {

/// Query tiles that one task takes past each key tile: keys and values come from far away once for
/// all of them.
constexpr std::int64_t kUnits = 4;

/// What one thread works in.
struct Scratch {
  UnitScratch units[kUnits];
  TileScratch tile;
};

/// The pieces of StepContext::state and StepContext::workspace.
struct Pieces {
  UnitScratch state;  // rows of [B, H, Sq]; null in a ring of one
  float* query;       // [B, H, query tiles] of [M, query_row]; null: nothing is kept over steps
  std::byte* packed;  // as PackedBlock; none if the block's owner shares its own
  std::byte* scratch;
  std::size_t scratch_bytes;
  std::int64_t query_row, query_size;
};

/// Planes that one task takes whole, at least: threads take the same number of them, and spread at
/// least two for each.
std::int64_t whole_planes(std::int64_t planes, std::int64_t threads) {
  return threads == 1 ? planes : std::max<std::int64_t>(planes / threads - 2, 0) * threads;
}

/// Planes whose packed keys have room, if so many are taken whole: a thread's whole ones have the
/// same.
std::int64_t rooms(std::int64_t planes, std::int64_t whole, std::int64_t threads) {
  return std::min(whole, threads) + planes - whole;
}

Scratch carve_scratch(const Plan& plan, Carver& carver) {
  const TileShape tile = plan.tiles(Pass::kForward);
  const Problem& p = plan.problem();
  const std::int64_t query_row = row_stride(Operands(plan).words(p.head_dim));
  Scratch s{};
  for (UnitScratch& unit : s.units) {
    unit.query = carver.take_array<float>(tile.queries * query_row);
    unit.acc = carver.take_array<float>(tile.queries * padded(p.value_dim));
    unit.max = carver.take_array<float>(tile.queries);
    unit.sum = carver.take_array<float>(tile.queries);
    if (Operands(plan).pairs) unit.rounded = carver.take_array<float>(tile.queries);
  }
  s.tile.s = carver.take_array<float>(tile.queries * row_stride(tile.keys));
  s.tile.factor = carver.take_array<float>(tile.queries);
  return s;
}

/// Rows of the state; a ring of one has a single step and needs none.
std::int64_t state_rows(const Plan& plan) {
  const Problem& p = plan.problem();
  return plan.world() == 1 ? 0 : p.batch * p.query_heads * plan.query_rows(plan.rank()).size();
}

Pieces carve(const Plan& plan, Carver& carver) {
  const Problem& p = plan.problem();
  const TileShape tile = plan.tiles(Pass::kForward);
  Pieces w{};
  w.query_row = row_stride(Operands(plan).words(p.head_dim));
  w.query_size = tile.queries * w.query_row;
  if (plan.shares_blocks()) {
    // With explicit positions there is one run, and at most one tile fewer.
    const Tiling queries{plan.query_rows(plan.rank()), tile.queries, nullptr};
    w.query = carver.take_array<float>(p.batch * p.query_heads * queries.count() * w.query_size);
  } else {
    const std::int64_t planes = p.batch * p.kv_heads;
    const std::int64_t n = rooms(planes, whole_planes(planes, threads(plan)), threads(plan));
    w.packed = carver.take(PackedBlock(plan, Pass::kForward).bytes(n)).data();
  }
  Carver one;
  carve_scratch(plan, one);
  w.scratch_bytes = one.used();
  w.scratch = carver.take(w.scratch_bytes * static_cast<std::size_t>(threads(plan))).data();
  return w;
}

/// How units are spread over tasks. A plane is a (batch row, kv head): its units share keys and
/// values, all heads of the group for one query tile, then those for the next one. First come whole
/// planes, if there are enough: their task packs the keys itself, and reads them while they are
/// near. The units of the others are spread, several a task, late query tiles first, as they are
/// the longest under a causal mask; the last tasks are of one unit, so that no thread waits long
/// for another at the end.
struct Tasks {
  std::int64_t group, planes, units;
  std::int64_t whole = 0;  // planes
  std::int64_t single;     // of each other plane's units
  std::int64_t shared;     // tasks of a plane for the rest of them
  std::int64_t shift;  // of a plane that is not taken whole: its room is that far from its number

  Tasks(const ForwardStep& step, int threads)
      : group(step.plan.problem().query_heads / step.plan.problem().kv_heads),
        planes(step.plan.problem().batch * step.plan.problem().kv_heads),
        units(group * step.schedule.queries.count()) {
    if (step.shared == nullptr) whole = whole_planes(planes, threads);
    const std::int64_t spread = planes - whole;
    single = threads > 1 && units > kUnits && spread > 0
                 ? std::min(units / 2, ceil_div(3 * threads, spread))
                 : 0;
    shared = ceil_div(units - single, kUnits);
    // Smaller tasks rather than threads without one at the end.
    while (single == 0 && shared < units && spread * shared % threads != 0) ++shared;
    if (shared + single == 1 && step.shared == nullptr) whole = planes;
    shift = rooms(planes, whole, threads) - planes;
  }
  std::int64_t count() const { return whole + (planes - whole) * (shared + single); }

  /// A share of a plane's units.
  struct Share {
    std::int64_t plane;
    Range units;
  };
  Share share_of(std::int64_t task) const {
    if (task < whole) return {task, {0, units}};
    const std::int64_t spread = planes - whole;
    const std::int64_t plane = whole + (task - whole) % spread;
    const std::int64_t t = shared + single - 1 - (task - whole) / spread;
    if (t < single) return {plane, {t, t + 1}};
    const std::int64_t rest = units - single;
    return {plane,
            {single + (t - single) * rest / shared, single + (t - single + 1) * rest / shared}};
  }
};

/// Is it better to read queries where they lie? Packing them pays if many key tiles meet them.
bool query_in_place(const ForwardStep& step) {
  constexpr std::int64_t kFew = 4;
  return step.query.dtype == DType::kFloat32 && step.schedule.keys.count() <= kFew;
}

/// Where a unit keeps its accumulators and its packed query.
UnitScratch place_of(const ForwardStep& step, const Pieces& w, const UnitScratch& scratch,
                     std::int64_t bh, std::int64_t i) {
  UnitScratch at = scratch;
  const Tiling& queries = step.schedule.queries;
  if (w.state.acc != nullptr) {
    const std::int64_t row = bh * queries.positions.size() + queries[i].row;
    at.acc = w.state.acc + row * padded(step.plan.problem().value_dim);
    at.max = w.state.max + row;
    at.sum = w.state.sum + row;
    if (w.state.rounded != nullptr) at.rounded = w.state.rounded + row;
  }
  if (query_in_place(step)) at.query = nullptr;
  if (w.query != nullptr) at.query = w.query + (bh * queries.count() + i) * w.query_size;
  return at;
}

/// What a task works with.
struct Work {
  const ForwardStep& step;
  const Pieces& pieces;
  const Operands& operands;
  const Scratch& scratch;
  std::int64_t group;  // query heads of a kv head

  std::int64_t head_of(std::int64_t plane, std::int64_t unit) const {
    return plane * group + unit % group;
  }
};

/// The first tile that may hold visible keys of any of these units.
std::int64_t first_tile(const Work& w, const Range& units) {
  const PairSchedule& schedule = w.step.schedule;
  const Tile queries = schedule.queries[units.begin / w.group];
  const Range tiles = visit(schedule.mask, queries.span, schedule.keys).visited[0];
  return std::min(tiles.begin, schedule.keys.count() - 1);
}

/// Units of a plane, at most kUnits, past all of their key tiles. `next`: what this thread does
/// after that, or no units.
void attend_keys(const Work& w, const PlaneKeys& keys, const Range& share, const Tasks::Share& next,
                 PassCounts& counts) {
  const ForwardStep& step = w.step;
  const bool packed = w.pieces.query != nullptr && step.continued;
  const std::int64_t count = share.size();
  std::optional<Unit> units[kUnits];
  TileRanges ranges[kUnits];
  Range all[2] = {{INT64_MAX, 0}, {INT64_MAX, 0}};
  for (std::int64_t u = 0; u < count; ++u) {
    const std::int64_t head = w.head_of(keys.plane, share.begin + u);
    const std::int64_t i = (share.begin + u) / w.group;
    units[u].emplace(step, w.scratch.tile, place_of(step, w.pieces, w.scratch.units[u], head, i),
                     w.operands, keys, head, i, packed);
    ranges[u] = units[u]->visited();
    for (int run = 0; run < 2; ++run) {
      if (ranges[u].visited[run].empty()) continue;
      all[run].begin = std::min(all[run].begin, ranges[u].visited[run].begin);
      all[run].end = std::max(all[run].end, ranges[u].visited[run].end);
    }
  }
  for (int run = 0; run < 2; ++run) {
    for (std::int64_t j = all[run].begin; j < all[run].end; ++j) {
      keys.need(j);
      bool asked = false;  // for the keys of the next tile
      for (std::int64_t u = 0; u < count; ++u) {
        if (!ranges[u].visited[run].contains(j)) continue;
        Ahead ahead;
        if (j == all[run].begin && w.pieces.state.acc != nullptr && u + 1 < count) {
          ahead = units[u + 1]->ahead();
        } else if (j + 1 == ranges[u].visited[run].end) {
          if (step.last) units[u]->ask_for_rows(ahead);
          if (u < next.units.size() && !packed) {
            const std::int64_t unit = next.units.begin + u;
            ask_for_query(step, w.head_of(next.plane, unit), unit / w.group, ahead);
          }
        }
        if (!asked && j + 1 < all[run].end) {
          keys.ask_for(j + 1, ahead);
        } else if (!asked && next.plane != keys.plane && !next.units.empty()) {
          ask_for_keys(step, next.plane, first_tile(w, next.units), ahead);
        }
        asked = true;
        units[u]->attend(j, ahead, counts);
      }
    }
  }
  for (std::int64_t u = 0; u < count; ++u) units[u]->finish();
}

/// Is it better to read a plane's values where they lie? Packing them pays if many query tiles
/// read them or rows do not begin with cache lines, and is needed to know what hidden ones hold.
bool values_in_place(const Work& w, const Tasks::Share& plane) {
  const Problem& p = w.step.plan.problem();
  if (w.operands.format != Format::kFloat32 || p.value_dim % kPanel != 0) return false;
  if (plane.units.size() > kUnits) return false;
  const Region rows =
      rows_of(w.step.value, plane.plane / p.kv_heads, 0, plane.plane % p.kv_heads, 1);
  const auto begin = reinterpret_cast<std::uintptr_t>(rows.first);
  if (((begin | static_cast<std::uintptr_t>(rows.step)) & 63U) != 0) return false;
  for (std::int64_t u = plane.units.begin; u < plane.units.end; ++u) {
    for (std::int64_t j = 0; j < w.step.schedule.keys.count(); ++j) {
      const std::int64_t head = w.head_of(plane.plane, u);
      const TileKind kind =
          w.step.schedule.kind(head / p.query_heads, head % p.query_heads, u / w.group, j);
      if (kind != TileKind::kFull) return false;
    }
  }
  return true;
}

void run_task(const Work& w, const PackedBlock& block, const Tasks& tasks, std::int64_t worker,
              std::int64_t ticket, PassCounts& counts) {
  const Tasks::Share share = tasks.share_of(ticket);
  const std::int64_t key_tiles = w.step.schedule.keys.count();
  PlaneKeys keys{w.step, block, w.step.shared, share.plane * key_tiles, share.plane};
  Tasks::Share after{share.plane, {}};  // of other tasks
  if (w.step.shared == nullptr) {
    keys.at = w.pieces.packed;
    keys.first = (share.plane + tasks.shift) * key_tiles;
  }
  if (ticket < tasks.whole) {
    keys.first = worker * key_tiles;
    keys.own = w.pieces.packed;
    keys.values_in_place = values_in_place(w, share);
    for (std::int64_t j = 0; j < key_tiles; ++j) block.forget(keys.own, keys.first + j);
    if (ticket + 1 < tasks.whole) after = tasks.share_of(ticket + 1);
  }
  const auto last_of = [](const Tasks::Share& s, std::int64_t end) {
    return Tasks::Share{s.plane, {std::max(s.units.begin, end - kUnits), end}};
  };
  for (std::int64_t end = share.units.end; end > share.units.begin; end -= kUnits) {
    const Range units = last_of(share, end).units;
    attend_keys(w, keys, units,
                units.begin > share.units.begin ? last_of(share, units.begin)
                                                : last_of(after, after.units.end),
                counts);
  }
}

}  // namespace

std::size_t forward_workspace(const Plan& plan) {
  Carver measure;
  carve(plan, measure);
  return measure.used();
}

std::size_t forward_state(const Plan& plan) {
  const std::int64_t numbers = Operands(plan).pairs ? 3 : 2;  // of a row beside its accumulators
  return static_cast<std::size_t>(state_rows(plan) * (padded(plan.problem().value_dim) + numbers)) *
         sizeof(float);
}

PassCounts forward(const ForwardStep& step) {
  const Problem& p = step.plan.problem();
  const Operands operands(step.plan);
  Carver carver(step.workspace);
  Pieces w = carve(step.plan, carver);
  if (!(step.first && step.last)) {
    const std::int64_t rows = state_rows(step.plan);
    w.state.acc = reinterpret_cast<float*>(step.state.data());
    w.state.max = w.state.acc + rows * padded(p.value_dim);
    w.state.sum = w.state.max + rows;
    w.state.rounded = operands.pairs ? w.state.sum + rows : nullptr;
  }
  const Tasks tasks(step, step.executor.threads());
  const PackedBlock block(step.plan, Pass::kForward);
  if (step.shared == nullptr) block.pack(step, tasks.whole, w.packed, tasks.whole + tasks.shift);
  PassCounts counts = run_tickets(
      step.executor, tasks.count(), [&](std::int64_t worker, std::int64_t ticket, PassCounts& own) {
        Carver scratch(
            {w.scratch + static_cast<std::size_t>(worker) * w.scratch_bytes, w.scratch_bytes});
        const Scratch own_scratch = carve_scratch(step.plan, scratch);
        run_task({step, w, operands, own_scratch, tasks.group}, block, tasks, worker, ticket, own);
      });
  counts.flops = flops(p, Pass::kForward, counts.pairs);
  return counts;
}

}  // namespace ringattn::cpu
