// SPDX-License-Identifier: Apache-2.0
// THE definition of what a pass needs in memory: the same code measures the workspace and carves
// it. docs/contract.md writes the formula out.
#pragma once

#include <cstddef>
#include <span>

#include "plan.h"

namespace ringattn {

/// Hands out 64-byte aligned pieces of a buffer; without a buffer it only measures.
class Carver {
 public:
  static constexpr std::size_t kAlignment = 64;

  Carver() = default;
  explicit Carver(std::span<std::byte> buffer) : base_(buffer.data()) {}

  std::span<std::byte> take(std::size_t bytes) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return {at, base_ == nullptr ? 0 : bytes};
  }

  template <class T>
  T* take_array(std::int64_t n) {
    return reinterpret_cast<T*>(take(static_cast<std::size_t>(n) * sizeof(T)).data());
  }

  std::size_t used() const { return used_; }

 private:
  std::byte* base_ = nullptr;
  std::size_t used_ = 0;
};

/// The pieces of one pass on one rank. Empty where the pass, the ring or the options need none.
struct Workspace {
  std::int32_t* query_ids = nullptr;        // [B, Sq_local], of ids that are not contiguous
  std::int64_t* query_positions = nullptr;  // [Sq_local]
  SegmentBounds* query_bounds = nullptr;    // [B, query tiles]
  SegmentBounds* key_bounds = nullptr;      // [B, key tiles of the largest shard]
  Range* query_spans = nullptr;             // [query tiles]
  Range* key_spans = nullptr;               // [key tiles of the largest shard]
  double* head_sinks = nullptr;             // [H] logits, one per head
  double* head_dsinks = nullptr;            // [H] their gradients
  std::span<std::byte> own_block;           // this rank's K, V, ids, positions
  std::span<std::byte> shared_block;        // follows own_block, if the ring hands over memory
  std::span<std::byte> received_blocks[2];  // unless the ring hands over memory
  std::span<std::byte> own_sums;            // dK, dV of this rank's block
  std::span<std::byte> parts[2];            // a step's part of another block's dK, dV
  std::span<std::byte> received_sums;       // unless the ring hands over memory
  std::span<std::byte> returned_sums[2];    // from the ends of the two directions
  std::span<std::byte> table;               // one record per rank: summaries, sink gradients
  std::span<std::byte> backend;             // scratch
  std::span<std::byte> state;               // what the backend keeps between steps
};

Workspace carve_workspace(const Plan& plan, Pass pass, Carver& carver);

/// Backend::share_block() of a block's owner, by the block's message in a ring that hands over
/// memory.
inline const std::byte* shared_block(std::span<const std::byte> message) {
  return message.data() +
         (message.size() + Carver::kAlignment - 1) / Carver::kAlignment * Carver::kAlignment;
}

/// The pieces of one step whose caller holds blocks, sums and state: tables of the schedule and
/// the backend's scratch.
Workspace carve_step(const Plan& plan, Pass pass, Carver& carver);

/// Tiles of this rank's queries, and of the keys of the largest shard.
std::int64_t query_tiles(const Plan& plan, Pass pass);
std::int64_t most_key_tiles(const Plan& plan, Pass pass);

/// Bytes of one rank's record in Workspace::table.
std::size_t record_bytes(const Plan& plan);

}  // namespace ringattn
