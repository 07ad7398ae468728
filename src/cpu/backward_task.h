// SPDX-License-Identifier: Apache-2.0
// One (batch row, kv head, key tile) of the backward pass: it owns their dK and dV, and adds its
// part to dQ tiles when its turn comes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend.h"
#include "cpu/backward_rows.h"
#include "cpu/cpu.h"
#include "cpu/packed_block.h"
#include "schedule.h"
#include "workspace.h"

namespace ringattn::cpu {

/// Tiles of dS that wait for their turn to be added to dQ. A thread whose turn has not come goes on
/// with the next tile; with so many, one that is slower for a while holds nobody.
constexpr int kAhead = 4;

/// What one thread works in.
struct TaskScratch {
  std::byte* packed;        // one tile of PackedBlock; none if the block's owner shares its own
  float* s;                 // [M, stride of N]
  float* dp;                // [M, stride of N], of pairs
  float* tiles_ds[kAhead];  // [M, stride of N] each; unless of pairs, dP before that
  float* dkey;              // [N, stride of D]
  float* dvalue;            // [N, stride of Dv]
};

TaskScratch carve_task(const Plan& plan, Carver& carver);

class Task {
 public:
  /// Tile `j` of plane `bg`, a (batch row, kv head).
  Task(const BackwardStep& step, const BackwardPieces& pieces, const TaskScratch& scratch,
       const Operands& operands, const PackedBlock& block, std::int64_t bg, std::int64_t j);

  void run(PassCounts& counts);

 private:
  /// dS of a query tile on its way to dQ; null: nothing to add, only its turn to pass on.
  struct Pending {
    std::int64_t bh, h, i;
    Tile tile;
    const float* ds;
  };

  PackedTile load_keys(const PackedBlock& block);
  void store_keys();
  void clear_keys();
  void attend(std::int64_t h, std::int64_t i, PassCounts& counts);
  void weigh(std::int64_t bh, std::int64_t i, const Tile& tile, const TileBits* bits, float* dp,
             float* ds);
  void add_to_keys(std::int64_t bh, std::int64_t i, const Tile& tile, const TileBits* bits,
                   const float* dp);
  void add_transposed(const float* weights, const float* x, std::int64_t row, std::int64_t rows,
                      std::int64_t columns, float* out, const TileBits* bits, bool finite);
  float* take_slot();
  void flush();
  void add_first();
  void add_to_queries(std::int64_t bh, const Tile& tile, const float* ds);
  void add_carefully(std::int64_t bh, const Tile& tile, const TileBits& bits, const float* ds);
  std::int64_t before(std::int64_t h, std::int64_t i) const;
  void wait_for_turn(std::int64_t bh, std::int64_t h, std::int64_t i);

  /// Where a query tile is in PackedRows.
  std::int64_t packed(std::int64_t bh, std::int64_t i) const {
    return bh * step_.schedule.queries.count() + i;
  }
  Progress& progress(std::int64_t bh, std::int64_t i) { return w_.progress[packed(bh, i)]; }
  bool is_turn(const Pending& p) {
    return progress(p.bh, p.i).load(std::memory_order_acquire) == before(p.h, p.i);
  }
  float* dquery_of(std::int64_t bh, const Tile& tile) const {
    return w_.dquery + (bh * step_.query.dim(1) + tile.row) * padded(p_.head_dim);
  }

  const BackwardStep& step_;
  const Problem& p_;
  const BackwardPieces& w_;
  TaskScratch x_;
  const Operands& o_;
  const KernelTable& k_;
  std::int64_t stride_, ds_row_, d_, v_, b_, g_, j_;
  Tile keys_;
  PackedTile packed_;
  bool empty_ = true;  // dkey and dvalue are not written yet
  Pending pending_[kAhead];
  int begin_ = 0;  // of those that wait, in the order they came
  int count_ = 0;
};

}  // namespace ringattn::cpu
