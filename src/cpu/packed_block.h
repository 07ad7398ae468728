// SPDX-License-Identifier: Apache-2.0
// Keys and values of a block as products read them, tile by tile. In the workspace, or where the
// block's owner shares it with ranks that share its memory: it is the same for every rank.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend.h"
#include "cpu/cpu.h"

namespace ringattn::cpu {

/// A tile of N keys. Rows of N columns are row_stride(N of a whole tile) floats apart.
struct PackedTile {
  const float* keys_t;    // [D, stride of N]
  const float* values;    // [N, values_row], forward
  const float* values_t;  // [Dv, stride of N], backward
  const float* keys;      // [N, stride of D], backward
  std::int64_t values_row;
  bool finite;  // all of what multiplies weights or their gradients is finite
};

class PackedBlock {
 public:
  PackedBlock(const Plan& plan, Pass pass);

  /// Bytes of one tile, and of planes of the largest shard: of some, or of all.
  std::size_t tile_bytes() const { return tile_bytes_; }
  std::size_t bytes(std::int64_t planes) const {
    return static_cast<std::size_t>(planes * tiles_) * tile_bytes_;
  }
  std::size_t bytes() const { return bytes(planes_); }

  /// Packs tile j of a plane, a (batch row, kv head), as tile n of `at`; of the forward's tiles,
  /// maybe only the keys.
  void pack(const StepContext& step, std::int64_t plane, std::int64_t j, std::byte* at,
            std::int64_t n, bool keys_only = false) const;

  /// Packs the tiles of all planes from `first` on: tile j of that is tile room * tiles + j.
  void pack(const StepContext& step, std::int64_t first, std::byte* at, std::int64_t room) const;

  /// Says that tile n of `at` is not packed yet, until pack() says otherwise; asks.
  void forget(std::byte* at, std::int64_t n) const { state(at, n) = State::kNone; }
  bool is_packed(std::byte* at, std::int64_t n) const { return state(at, n) != State::kNone; }

  /// Tile n of `at`.
  PackedTile tile(const std::byte* at, std::int64_t n) const;

 private:
  enum class State : std::uint8_t { kNone, kFinite, kNotFinite };
  State& state(std::byte* at, std::int64_t n) const {
    return *reinterpret_cast<State*>(at + static_cast<std::size_t>(n) * tile_bytes_ + state_);
  }

  const Operands operands_;
  const Pass pass_;
  std::int64_t tile_rows_;
  std::int64_t values_row_;
  std::int64_t planes_;     // (batch row, kv head)
  std::int64_t tiles_;      // of a plane of the largest shard
  std::size_t second_ = 0;  // in a tile: values, or values_t
  std::size_t third_ = 0;   // keys
  std::size_t state_ = 0;
  std::size_t tile_bytes_ = 0;
};

}  // namespace ringattn::cpu
