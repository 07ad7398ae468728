// SPDX-License-Identifier: Apache-2.0
// One (batch row, head, query tile) of the forward pass: what it keeps while key tiles pass.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend.h"
#include "cpu/cpu.h"
#include "cpu/packed_block.h"
#include "schedule.h"

namespace ringattn::cpu {

/// What a query tile works in.
struct UnitScratch {
  float* query;    // [M, stride of D]; null: float32 rows that are read where they lie
  float* acc;      // [M, padded Dv]
  float* max;      // [M]
  float* sum;      // [M]
  float* rounded;  // [M] of pairs, as SoftmaxTile; else null
};

/// What all units of a thread share.
struct TileScratch {
  float* s;       // [M, stride of N]
  float* factor;  // [M]
};

/// What will be read or written after a key tile, to be brought nearer during its two products.
struct Ahead {
  Region first[2] = {};
  Region second[2] = {};
};

/// The packed keys and values of a plane, a (batch row, kv head): tiles from `first` on.
struct PlaneKeys {
  const ForwardStep& step;
  const PackedBlock& block;
  const std::byte* at;
  std::int64_t first;
  std::int64_t plane;
  std::byte* own = nullptr;      // `at`, if tiles are packed when they are first needed
  bool values_in_place = false;  // rows of float32 that are read where they lie

  PackedTile tile(std::int64_t j) const;
  bool lacks(std::int64_t j) const { return own != nullptr && !block.is_packed(own, first + j); }
  void need(std::int64_t j) const {
    if (lacks(j)) block.pack(step, plane, j, own, first + j, values_in_place);
  }

  /// The part of `to` for what need() or a product will read of tile j.
  void ask_for(std::int64_t j, Ahead& to) const;
};

/// The part of `to` for rows of tensors: of a query tile, and of a key tile.
void ask_for_query(const ForwardStep& step, std::int64_t bh, std::int64_t i, Ahead& to);
void ask_for_keys(const ForwardStep& step, std::int64_t plane, std::int64_t j, Ahead& to);

class Unit {
 public:
  /// `own`: scratch, or the state's rows of this tile. `packed`: it has the query already.
  Unit(const ForwardStep& step, const TileScratch& scratch, const UnitScratch& own,
       const Operands& operands, const PlaneKeys& keys, std::int64_t bh, std::int64_t i,
       bool packed);

  /// The key tiles that may hold visible keys.
  TileRanges visited() const { return visit(step_.schedule.mask, tile_.span, step_.schedule.keys); }

  void attend(std::int64_t j, const Ahead& ahead, PassCounts& counts);

  /// What attend() reads of this unit.
  Ahead ahead() const;

  /// The part of `to` for rows of `out` that finish() writes.
  void ask_for_rows(Ahead& to) const;

  /// After the last key tile of the step; of the last step, writes the results.
  void finish();

 private:
  void load_query(bool packed);
  void clear();
  void attend_rows(std::int64_t j, Range rows, Range keys, const TileBits* bits,
                   const Ahead& ahead);
  void finish_rows();

  const ForwardStep& step_;
  const Problem& p_;
  const TileScratch& s_;
  UnitScratch x_;
  const Operands& o_;
  const KernelTable& k_;
  bool split_;  // weights are kept in two bfloat16 values: out is to be differentiated
  std::int64_t b_, h_;
  Tile tile_;
  const PlaneKeys& keys_;
  const float* query_;
  std::int64_t query_row_;
  std::int64_t i_, width_;
  bool empty_;  // acc is not written yet
};

}  // namespace ringattn::cpu
