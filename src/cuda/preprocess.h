// SPDX-License-Identifier: Apache-2.0
// What the backward needs once per row before its first step.
#pragma once

#include <cstddef>
#include <span>

#include "backend.h"
#include "cuda/query_tiles.h"

namespace ringattn::cuda {

/// Where it goes.
struct RowStatistics {
  float* lse;    // [B, H, Sq]; +inf for rows that saw nothing
  float* delta;  // [B, H, Sq]: out . dout - dlse (docs/contract.md)
  // If there are tiles, the same by them, [B, H, tile]: lse in log2 units of its rows, in the order
  // of QueryTiles::column, then delta. +inf and 0 where the tile is longer than its run.
  QueryTiles tiles;
  float* by_tile;
  // Set to 0 by the way, which spares a launch: from a multiple of 16 bytes to the next one.
  std::span<std::byte> clear;
};

/// Fills them, and the heads' sink gradients if there are sinks.
void preprocess(const BackwardStep& step, const RowStatistics& to);

}  // namespace ringattn::cuda
