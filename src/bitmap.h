// SPDX-License-Identifier: Apache-2.0
// Dense and lazy masks compiled to blocks: a kind per block, bits only for mixed blocks, equal
// heads and equal blocks stored once. Indexed by global position. The view works on hosts and
// devices alike.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "ringattn/mask.h"

namespace ringattn {

/// What a tile of the score matrix needs.
enum class TileKind : std::uint8_t {
  kSkip,    // no visible pair
  kMasked,  // some
  kFull,    // all: no mask code
};

/// The three arrays of a bitmap, wherever they lie.
struct BitmapView {
  /// Rows and columns of a block: one 64-bit word per row.
  static constexpr std::int64_t kBlock = 64;
  static constexpr std::int32_t kEmptyBlock = -1;
  static constexpr std::int32_t kFullBlock = -2;

  const std::int32_t* plane_of_head = nullptr;  // [heads]; equal heads share a plane
  // [planes][block_rows][block_cols]: kEmptyBlock, kFullBlock, or the number of a mixed block.
  const std::int32_t* blocks = nullptr;
  const std::uint64_t* mixed = nullptr;  // [mixed blocks][kBlock]
  std::int64_t heads = 0;                // 1: the same for every head
  std::int64_t query_seq = 0, key_seq = 0, block_rows = 0, block_cols = 0;

  RINGATTN_HOST_DEVICE constexpr bool present() const { return plane_of_head != nullptr; }

  RINGATTN_HOST_DEVICE constexpr std::int32_t block(std::int64_t head, std::int64_t i,
                                                    std::int64_t j) const {
    const std::int32_t plane = plane_of_head[heads == 1 ? 0 : head];
    return blocks[(plane * block_rows + i) * block_cols + j];
  }

  /// The kind of a rectangle of positions; kMasked may turn out empty or full bit by bit.
  RINGATTN_HOST_DEVICE constexpr TileKind kind(std::int64_t head, Range queries, Range keys) const {
    queries = intersect(queries, {0, query_seq});
    keys = intersect(keys, {0, key_seq});
    if (queries.empty() || keys.empty()) return TileKind::kSkip;
    bool empty = true;
    bool full = true;
    for (std::int64_t i = queries.begin / kBlock; i * kBlock < queries.end; ++i) {
      for (std::int64_t j = keys.begin / kBlock; j * kBlock < keys.end; ++j) {
        const std::int32_t b = block(head, i, j);
        empty = empty && b == kEmptyBlock;
        full = full && b == kFullBlock;
        if (!empty && !full) return TileKind::kMasked;
      }
    }
    return empty ? TileKind::kSkip : TileKind::kFull;
  }

  RINGATTN_HOST_DEVICE constexpr bool visible(std::int64_t head, std::int64_t q,
                                              std::int64_t k) const {
    if (!Range{0, query_seq}.contains(q) || !Range{0, key_seq}.contains(k)) return false;
    const std::int32_t b = block(head, q / kBlock, k / kBlock);
    if (b < 0) return b == kFullBlock;
    return (mixed[b * kBlock + q % kBlock] >> (k % kBlock) & 1U) != 0;
  }

  /// Bits of keys [k, k + 64) of row q; keys beyond the mask are 0.
  RINGATTN_HOST_DEVICE constexpr std::uint64_t row(std::int64_t head, std::int64_t q,
                                                   std::int64_t k) const {
    const std::int64_t shift = k % kBlock;
    std::uint64_t bits = word(head, q, k / kBlock) >> shift;
    if (shift > 0) bits |= word(head, q, k / kBlock + 1) << (kBlock - shift);
    const std::int64_t left = key_seq - k;
    return left >= kBlock ? bits : bits & ((std::uint64_t{1} << left) - 1);
  }

 private:
  RINGATTN_HOST_DEVICE constexpr std::uint64_t word(std::int64_t head, std::int64_t q,
                                                    std::int64_t j) const {
    if (j >= block_cols) return 0;
    const std::int32_t b = block(head, q / kBlock, j);
    if (b < 0) return b == kFullBlock ? ~std::uint64_t{0} : 0;
    return mixed[b * kBlock + q % kBlock];
  }
};

/// Owns what a view shows, on the host.
class BlockBitmap {
 public:
  static constexpr std::int64_t kBlock = BitmapView::kBlock;

  BitmapView view() const;

  std::int64_t heads() const { return static_cast<std::int64_t>(plane_of_head_.size()); }
  std::int64_t query_seq() const { return query_seq_; }
  std::int64_t key_seq() const { return key_seq_; }

  std::span<const std::int32_t> plane_of_head() const { return plane_of_head_; }
  std::span<const std::int32_t> blocks() const { return planes_; }
  std::span<const std::uint64_t> mixed() const { return mixed_; }

  /// Bytes held, distinct planes and distinct mixed blocks, for plans and tests.
  std::int64_t bytes() const;
  std::int64_t planes() const;
  std::int64_t mixed_blocks() const;

  /// Equal for equal masks; computed on each call.
  std::int64_t hash() const;

 private:
  friend class BitmapBuilder;  // bitmap.cpp
  std::int64_t query_seq_ = 0, key_seq_ = 0, block_rows_ = 0, block_cols_ = 0;
  std::vector<std::int32_t> plane_of_head_;
  std::vector<std::int32_t> planes_;
  std::vector<std::uint64_t> mixed_;
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
