// SPDX-License-Identifier: Apache-2.0
// Problem + Options -> a checked plan. Pure: it moves no data and asks no other rank. Every
// argument check of docs/contract.md lives in plan.cpp and in arguments.cpp, nowhere else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bitmap.h"
#include "ringattn/attention.h"
#include "schedule.h"

namespace ringattn {

class Backend;

enum class Pass : std::uint8_t { kForward, kBackward };

/// Query rows and key rows of a tile.
struct TileShape {
  std::int64_t queries = 0;
  std::int64_t keys = 0;
};

/// One step of a rank: it works on the shard of rank - offset (mod world).
struct Step {
  int offset = 0;         // 0: its own; > 0: blocks travel to the next rank; < 0: to the previous
  int owner = 0;          // whose block
  int carried = 0;        // whose block it sends on, if it sends
  bool live = false;      // this rank computes on it
  bool receives = false;  // the block comes here, because this rank or a later one needs it
  bool sends = false;     // to receive, this rank also sends on the block one offset nearer to 0
  bool first = false;     // first live step
  bool last = false;      // last live step
};

/// The steps of one rank, own block first, then offsets 1, 2, ..., then -1, -2, ...
struct Route {
  int rank = 0;
  std::vector<Step> steps;
  int forward_reach = 0;   // how many hops this rank's own block travels to next ranks
  int backward_reach = 0;  // and to previous ones

  /// Step s + 1 if it continues in the direction of step s, else null.
  const Step* onward(std::size_t s) const {
    if (s + 1 >= steps.size() || steps[s].offset == 0) return nullptr;
    const Step& next = steps[s + 1];
    return (next.offset > 0) == (steps[s].offset > 0) ? &next : nullptr;
  }

  /// Does the block of step s travel no farther than this rank? Its dK, dV then go home.
  bool stops_here(std::size_t s) const {
    const Step* next = onward(s);
    return steps[s].receives && (next == nullptr || !next->sends);
  }
};

/// Which pairs of (query rank, key rank) have a visible pair.
class LiveMatrix {
 public:
  explicit LiveMatrix(int world)
      : world_(world), live_(static_cast<std::size_t>(world) * static_cast<std::size_t>(world)) {}
  bool at(int query_rank, int key_rank) const { return live_[index(query_rank, key_rank)] != 0; }
  void set(int query_rank, int key_rank, bool live) {
    live_[index(query_rank, key_rank)] = live ? 1 : 0;
  }
  int world() const { return world_; }

 private:
  std::size_t index(int q, int k) const {
    return static_cast<std::size_t>(q) * static_cast<std::size_t>(world_) +
           static_cast<std::size_t>(k);
  }
  int world_;
  std::vector<std::uint8_t> live_;
};

/// Whose block `rank` works on at an offset.
int owner_at(int rank, int offset, int world);

/// The turn of the ring that takes the fewest transfers for every live pair, seen from `rank`.
Route make_route(const LiveMatrix& live, int rank);

/// Byte offsets of the parts of one travelling block: key, value, segment ids, positions.
struct BlockLayout {
  std::size_t key = 0, value = 0, ids = 0, positions = 0, bytes = 0;
};

/// What one step of one rank costs.
struct StepCounts {
  Step step;
  PassCounts counts;
};

/// Global segment ids and positions, for plans of data that is at hand. Null: none.
struct GlobalData {
  const std::int32_t* q_segment_ids = nullptr;   // [B, Sq]
  const std::int32_t* kv_segment_ids = nullptr;  // [B, Sk]
  const std::int64_t* q_positions = nullptr;     // [Sq]
  const std::int64_t* kv_positions = nullptr;    // [Sk]
};

class Plan {
 public:
  /// Checks everything that is known before data; throws kInvalidArgument or kUnsupported.
  Plan(const Problem& problem, const Options& options, int rank, int world, bool hands_over);

  /// With a mask that is compiled already, whatever options.mask says.
  Plan(const Problem& problem, const Options& options, CompiledMask mask, int rank, int world,
       bool hands_over);

  const Problem& problem() const { return problem_; }  // value_dim filled in
  const Options& options() const { return options_; }
  int rank() const { return rank_; }
  int world() const { return world_; }
  bool hands_over() const { return hands_over_; }
  /// Do ranks read each other's memory?
  bool shares_blocks() const { return world_ > 1 && hands_over_; }
  float scale() const { return scale_; }
  float soft_cap() const { return options_.logits_soft_cap.value_or(0.0F); }  // 0: none
  const CompiledMask& mask() const { return mask_; }
  const Backend& backend() const { return *backend_; }
  const std::string& backend_reason() const { return reason_; }
  TileShape tiles(Pass pass) const { return pass == Pass::kForward ? forward_ : backward_; }

  /// The rows that a rank holds, by layout (explicit positions replace what they say, not how
  /// many they are).
  Positions query_rows(int rank) const;
  Positions key_rows(int rank) const;
  std::int64_t max_key_rows() const;  // of any rank

  /// The tiles of (query_rank's queries, key_rank's keys) by mask and layout, without data.
  PairSchedule pair_schedule(Pass pass, int query_rank, int key_rank) const;

  BlockLayout block_layout(int owner) const;
  std::size_t sums_bytes(int owner) const;         // dK and dV of one block, in sum_dtype()
  std::size_t value_sums_offset(int owner) const;  // where dV begins

  /// Which pairs are live by mask and layout; with explicit positions or segment ids, by the
  /// data too if it is at hand, as the ranks agree on it before they send.
  LiveMatrix live_matrix(const GlobalData& data = {}) const;

  /// Workspace bytes on this rank; the formula is written out in docs/contract.md.
  std::size_t workspace_bytes(Pass pass) const;

  /// What rank `rank` does step by step in a pass, given the data (if any) that decides. To ask
  /// for many ranks, compute `live` once.
  std::vector<StepCounts> steps(Pass pass, int rank, const LiveMatrix& live,
                                const GlobalData& data = {}) const;
  std::vector<StepCounts> steps(Pass pass, int rank, const GlobalData& data = {}) const {
    return steps(pass, rank, live_matrix(data), data);
  }

  /// The sum of steps(), and the tiles of the shard pairs that no step touches as skipped.
  PassCounts counts(Pass pass, int rank, const GlobalData& data = {}) const;

  /// Tiles of this rank's queries against every shard, over batch and query heads.
  std::int64_t all_tiles(Pass pass, int rank) const;

 private:
  void check();
  void choose();

  Problem problem_;
  Options options_;
  int rank_ = 0;
  int world_ = 1;
  bool hands_over_ = true;
  float scale_ = 1.0F;
  CompiledMask mask_;
  const Backend* backend_ = nullptr;
  std::string reason_;
  TileShape forward_, backward_;
};

}  // namespace ringattn
