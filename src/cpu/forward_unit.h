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
  float* query;  // [M, stride of D]
  float* acc;    // [M, padded Dv]
  float* max;    // [M]
  float* sum;    // [M]
};

/// What all units of a thread share.
struct TileScratch {
  float* s;       // [M, stride of N]
  float* factor;  // [M]
};

/// What will be read after a key tile, to be brought nearer during its two products.
struct Ahead {
  const void* first = nullptr;
  std::int64_t first_bytes = 0;
  const void* second = nullptr;
  std::int64_t second_bytes = 0;
};

/// The packed keys and values of a plane, a (batch row, kv head): tiles from `first` on.
struct PlaneKeys {
  const PackedBlock& block;
  const std::byte* at;
  std::int64_t first;

  PackedTile tile(std::int64_t j) const { return block.tile(at, first + j); }
  Ahead ahead(std::int64_t j) const;
};

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

  /// After the last key tile of the step; of the last step, writes the results.
  void finish();

 private:
  void load_query();
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
  std::int64_t b_, h_;
  Tile tile_;
  const PlaneKeys& keys_;
  std::int64_t i_, width_;
  bool empty_;  // acc is not written yet
};

}  // namespace ringattn::cpu
