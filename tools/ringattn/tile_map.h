// SPDX-License-Identifier: Apache-2.0
// The tiles of a whole ring as a grid that a person can look at: how much of each cell is full,
// masked and skipped. It asks the schedule, and decides nothing by itself.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace ringattn::tool {

/// One side of the grid.
struct TileAxis {
  /// Consecutive rows of one rank.
  struct Part {
    int rank;
    Range rows;  // in this axis' order
  };
  /// Are rows in global order? Else rank by rank, because the tiles of striped layouts and of
  /// explicit positions are no intervals of global positions.
  bool global = true;
  std::int64_t length = 0;
  std::int64_t tile = 0;            // largest tile
  std::int64_t tiles = 0;           // of all ranks
  std::vector<Part> parts;          // sorted by rows
  std::vector<std::int64_t> edges;  // of cells: tile borders, or a coarser even grid

  std::int64_t cells() const { return static_cast<std::int64_t>(edges.size()) - 1; }
  bool coarse() const { return cells() != tiles; }
};

struct TileMap {
  /// Shares of a cell's area.
  struct Cell {
    float full = 0;
    float masked = 0;
  };
  TileAxis queries, keys;
  std::vector<Cell> cells;  // [queries.cells(), keys.cells()]

  const Cell& at(std::int64_t q, std::int64_t k) const {
    return cells[static_cast<std::size_t>(q * keys.cells() + k)];
  }
};

/// Of one batch row and one query head.
TileMap make_tile_map(const Plan& plan, Pass pass, const GlobalData& data, std::int64_t batch,
                      std::int64_t head);

}  // namespace ringattn::tool
