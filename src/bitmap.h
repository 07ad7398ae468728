// SPDX-License-Identifier: Apache-2.0
// Dense and lazy masks compiled to blocks: a kind per block, bits only for mixed blocks, equal
// heads and equal blocks stored once. Indexed by global position.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "ringattn/mask.h"

namespace ringattn {

/// What a tile of the score matrix needs.
enum class TileKind : std::uint8_t {
  kSkip,    // no visible pair
  kMasked,  // some
  kFull,    // all: no mask code
};

class BlockBitmap {
 public:
  /// Rows and columns of a block: one 64-bit word per row.
  static constexpr std::int64_t kBlock = 64;

  std::int64_t heads() const { return static_cast<std::int64_t>(plane_of_head_.size()); }
  std::int64_t query_seq() const { return query_seq_; }
  std::int64_t key_seq() const { return key_seq_; }

  /// The kind of a rectangle of positions; kMasked may turn out empty or full bit by bit.
  TileKind kind(std::int64_t head, Range queries, Range keys) const;

  bool visible(std::int64_t head, std::int64_t q, std::int64_t k) const;

  /// Bits of keys [k, k + 64) of row q; keys beyond the mask are 0.
  std::uint64_t row(std::int64_t head, std::int64_t q, std::int64_t k) const;

  /// Bytes held, distinct planes and distinct mixed blocks, for plans and tests.
  std::int64_t bytes() const;
  std::int64_t planes() const;
  std::int64_t mixed_blocks() const;

  /// Equal for equal masks; computed on each call.
  std::int64_t hash() const;

 private:
  friend class BitmapBuilder;  // bitmap.cpp
  std::int64_t query_seq_ = 0, key_seq_ = 0, block_rows_ = 0, block_cols_ = 0;
  std::vector<std::int32_t> plane_of_head_;  // equal heads share a plane; one entry: all heads
  // planes_[(plane * block_rows_ + i) * block_cols_ + j]: -1 empty, -2 full, else a mixed block.
  std::vector<std::int32_t> planes_;
  std::vector<std::uint64_t> mixed_;  // [block][kBlock]

  std::int32_t block(std::int64_t head, std::int64_t i, std::int64_t j) const;
};

/// A mask for given lengths: interval AND bitmap (null: everything).
struct CompiledMask {
  IntervalMask interval;
  std::shared_ptr<const BlockBitmap> bitmap;
};

/// Throws kInvalidArgument if the mask has a shape other than [heads or 1, query_seq, key_seq].
CompiledMask compile(const Mask& mask, std::int64_t heads, std::int64_t query_seq,
                     std::int64_t key_seq);

}  // namespace ringattn
