// SPDX-License-Identifier: Apache-2.0
// What the backward pass does for rows of queries alone: lse, delta and dsinks before the key
// tiles, packed queries and dout for them, dQ after them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "backend.h"
#include "cpu/cpu.h"

namespace ringattn::cpu {

/// The last key tile whose part a dQ tile has taken; -1: none. One cache line each would cost
/// more memory than it saves time.
using Progress = std::atomic<std::int32_t>;

/// Rows of a query tile as the left and the right side of products; [B, H, query tiles] of them.
struct PackedRows {
  float* left;           // [M, left_row]
  float* right;          // [words of M, right_row]; `left` itself unless of pairs
  std::uint8_t* finite;  // all values are finite
  std::int64_t left_row, right_row;
  std::int64_t left_size, right_size;  // floats of a tile
};

/// The pieces of StepContext::state and StepContext::workspace.
struct BackwardPieces {
  float* dquery;       // state, [B, H, Sq, padded D], over all steps, without softmax_scale
  float* lse;          // state, [B, H, Sq] log2 units, +inf where there is no weight
  float* delta;        // state, [B, H, Sq]
  Progress* progress;  // [B, H, query tiles]
  PackedRows query;    // of D, for every key tile of every step
  PackedRows dout;     // of Dv
  std::byte* scratch;
  std::size_t scratch_bytes;
};

void prepare(const BackwardStep& step, const BackwardPieces& w, const KernelTable& k);

/// Packs the query and dout rows that all key tiles take, of every step.
void pack_rows(const BackwardStep& step, const BackwardPieces& w, const Operands& o);

/// Scales and rounds dQ.
void finish_queries(const BackwardStep& step, const BackwardPieces& w, const KernelTable& k);

}  // namespace ringattn::cpu
