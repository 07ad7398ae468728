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
  float* s;                 // [M, stride of N]; of pairs, an even number of rows
  float* tiles_ds[kAhead];  // [M, stride of N] each; dP before that
  float* dkey;              // [N, stride of D]
  float* dvalue;            // [N, stride of Dv]
};

TaskScratch carve_task(const Plan& plan, Carver& carver);

class Task {
 public:
  /// A key tile of a plane, a (batch row, kv head).
  struct Keys {
    std::int64_t plane, tile;
  };

  /// `next`: what this thread takes after it, probably; tile -1: nothing.
  Task(const BackwardStep& step, const BackwardPieces& pieces, const TaskScratch& scratch,
       const Operands& operands, const PackedBlock& block, const Keys& keys, const Keys& next);

  void run(PassCounts& counts);

 private:
  /// Rows of a query tile and the keys that they see.
  struct Part {
    Range rows, keys;
  };

  /// A query tile whose dS is on its way to dQ: all of it, or if masked what is seen. No parts:
  /// nothing to add, only its turn to pass on.
  struct Pending {
    std::int64_t bh, h, i;
    float* ds;
    Part parts[ceil_div(TileBits::kMaxRows, kMaskedRows)];
    int count;
  };

  PackedTile load_keys(const PackedBlock& block);
  void store_keys();
  void add_rows(float* x, std::int64_t x_row, std::int64_t columns, float factor, float* sum,
                std::int64_t sum_row) const;
  void clear_keys();
  void attend(std::int64_t h, std::int64_t i, PassCounts& counts);
  void split(Pending& tile, const TileBits& bits) const;
  void weigh(const Pending& tile, const Part& part, const TileBits* bits);
  void add_to_keys(const Pending& tile, const Part& part, const TileBits* bits);
  void add_transposed(const Part& part, const TileBits* bits, const float* weights, const float* x,
                      std::int64_t row, std::int64_t columns, float* out, bool finite,
                      const Region& next);
  void ask_for_next(Region& keys, Region& values) const;
  Region right_of(const PackedRows& x, const Pending& tile, const Part& part) const;
  float* take_slot();
  void flush();
  void add_first();
  void add_to_queries(const Pending& tile, const Part& part);
  void add_carefully(const Pending& tile, const TileBits& bits);
  std::int64_t before(std::int64_t h, std::int64_t i) const;
  void wait_for_turn(const Pending& tile);

  /// Where a query tile is in PackedRows.
  std::int64_t packed(const Pending& tile) const {
    return tile.bh * step_.schedule.queries.count() + tile.i;
  }
  Progress& progress(const Pending& tile) { return w_.progress[packed(tile)]; }
  bool is_turn(const Pending& tile) {
    return progress(tile).load(std::memory_order_acquire) == before(tile.h, tile.i);
  }
  /// A row of dQ, and of lse and delta.
  std::int64_t row_of(const Pending& tile, std::int64_t r) const {
    return tile.bh * step_.query.dim(1) + step_.schedule.queries[tile.i].row + r;
  }
  float* ds_of(const Pending& tile, const Part& part) const {
    return tile.ds + part.rows.begin * stride_ + part.keys.begin;
  }
  float* dquery_of(const Pending& tile, std::int64_t r) const {
    return w_.dquery + row_of(tile, r) * padded(p_.head_dim);
  }

  const BackwardStep& step_;
  const Problem& p_;
  const BackwardPieces& w_;
  TaskScratch x_;
  const Operands& o_;
  const KernelTable& k_;
  std::int64_t stride_, d_, v_, b_, g_, j_;
  Keys next_;
  bool last_ = false;  // at the last query tile
  Tile keys_;
  PackedTile packed_;
  bool empty_ = true;  // dkey and dvalue are not written yet
  Pending pending_[kAhead];
  int begin_ = 0;  // of those that wait, in the order they came
  int count_ = 0;
};

}  // namespace ringattn::cpu
