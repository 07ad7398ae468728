// SPDX-License-Identifier: Apache-2.0
// How sums over keys, a forward's and those of dQ, lie between steps where the kernels for Hopper
// gather them: in tiles of queries, each as the registers of a warpgroup hold it, so that 16 bytes
// of a thread lie together and those of a warp fill whole lines.
#pragma once

#include <cstdint>

#include "ringattn/mask.h"
#include "schedule.h"

namespace ringattn::cuda {

struct QueryTiles {
  int rows = 0;                     // of a tile, 64 or 128; 0: none, sums lie as [B, H, Sq, dim]
  int dim = 0;                      // of a row, padded
  std::int64_t counts[2] = {0, 0};  // rows of the two runs

  /// A 64 x 64 part of a tile, in floats: what one warpgroup holds.
  static constexpr int kPart = 64 * 64;

  RINGATTN_HOST_DEVICE constexpr std::int64_t first_run_tiles() const {
    return tiles(counts[0] + rows - 1);
  }
  /// Tiles of one head of one batch row.
  RINGATTN_HOST_DEVICE constexpr std::int64_t count() const {
    return rows == 0 ? 0 : first_run_tiles() + tiles(counts[1] + rows - 1);
  }
  RINGATTN_HOST_DEVICE constexpr std::int64_t floats() const { return count() * rows * dim; }
  RINGATTN_HOST_DEVICE constexpr std::int64_t parts() const { return floats() / kPart; }
  /// Where a row of a shard lies: its tile, and its place in that.
  RINGATTN_HOST_DEVICE constexpr std::int64_t tile(std::int64_t row) const {
    return row < counts[0] ? tiles(row) : first_run_tiles() + tiles(row - counts[0]);
  }
  RINGATTN_HOST_DEVICE constexpr int row_in_tile(std::int64_t row) const {
    return static_cast<int>(row < counts[0] ? row : row - counts[0]) & (rows - 1);
  }
  /// Where a row's statistics lie within its tile: a thread, which holds columns 8 n + 2 t and
  /// 8 n + 2 t + 1, finds those of two n together, and its neighbour's beside them.
  RINGATTN_HOST_DEVICE static constexpr int column(int row) {
    return row / 16 * 16 + row % 8 / 2 * 4 + row % 16 / 8 * 2 + row % 2;
  }
  /// Of one number; `head`: of all heads of all batch rows.
  RINGATTN_HOST_DEVICE constexpr std::int64_t index(std::int64_t head, std::int64_t row,
                                                    int column) const {
    const int r = row_in_tile(row);
    const int part = r / 64 * (dim / 64) + column / 64;
    const int c = column % 64;
    const int thread = r % 64 / 16 * 32 + r % 8 * 4 + c % 8 / 2;
    return (head * count() + tile(row)) * rows * dim + part * kPart + c / 8 * 512 + thread * 4 +
           r % 16 / 8 * 2 + c % 2;
  }

 private:
  /// Whole tiles in n rows. A shift: a division of 64 bits takes a GPU many registers.
  RINGATTN_HOST_DEVICE constexpr std::int64_t tiles(std::int64_t n) const {
    return n >> (rows == 64 ? 6 : 7);
  }
};

}  // namespace ringattn::cuda
