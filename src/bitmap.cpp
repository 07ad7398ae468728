// SPDX-License-Identifier: Apache-2.0
#include "bitmap.h"

#include <algorithm>
#include <array>
#include <string>
#include <unordered_map>

#include "mask_node.h"
#include "ringattn/error.h"
#include "schedule.h"

namespace ringattn {
namespace {

constexpr std::int64_t kBlock = BlockBitmap::kBlock;
constexpr std::int32_t kEmptyBlock = BitmapView::kEmptyBlock;
constexpr std::int32_t kFullBlock = BitmapView::kFullBlock;

// Kinds take 4 bytes a block: 2^28 of them are 1 GiB, a dense mask of a million by a million.
constexpr std::int64_t kMaxBlocks = std::int64_t{1} << 28;

using Words = std::array<std::uint64_t, static_cast<std::size_t>(kBlock)>;

std::uint64_t hash(const Words& words) {
  std::uint64_t h = 0x9E3779B97F4A7C15U;
  for (std::uint64_t w : words) h = (h ^ w) * 0xFF51AFD7ED558CCDU + (h >> 29);
  return h;
}

/// Moves every interval of a chain of & into one; what is left stays as nodes.
void split(const MaskNode& node, IntervalMask& interval, std::vector<const MaskNode*>& rest) {
  if (const auto* both = std::get_if<MaskNode::And>(&node.value)) {
    split(*both->a, interval, rest);
    split(*both->b, interval, rest);
    return;
  }
  if (const auto* m = std::get_if<IntervalMask>(&node.value)) {
    if (const auto merged = intersect(interval, *m)) {
      interval = *merged;
      return;
    }
  }
  rest.push_back(&node);
}

}  // namespace

/// Builds the AND of several nodes, head by head, block by block.
class BitmapBuilder {
 public:
  BitmapBuilder(std::vector<const MaskNode*> nodes, std::int64_t heads, std::int64_t query_seq,
                std::int64_t key_seq)
      : nodes_(std::move(nodes)), map_(std::make_shared<BlockBitmap>()) {
    map_->query_seq_ = query_seq;
    map_->key_seq_ = key_seq;
    map_->block_rows_ = ceil_div(query_seq, kBlock);
    map_->block_cols_ = ceil_div(key_seq, kBlock);
    map_->plane_of_head_.resize(static_cast<std::size_t>(heads));
    std::int64_t blocks = 0;
    if (__builtin_mul_overflow(map_->block_rows_, map_->block_cols_, &blocks) ||
        __builtin_mul_overflow(blocks, heads, &blocks) || blocks > kMaxBlocks) {
      throw Error(ErrorCode::kUnsupported,
                  "mask: a dense mask or an | of masks over " + std::to_string(query_seq) + " x " +
                      std::to_string(key_seq) + " positions and " + std::to_string(heads) +
                      " heads needs more than " + std::to_string(kMaxBlocks) +
                      " blocks of 64 x 64; causal, window and chunk joined by & need none");
    }
  }

  std::shared_ptr<const BlockBitmap> build() {
    for (std::size_t head = 0; head < map_->plane_of_head_.size(); ++head) add_head(head);
    return map_;
  }

 private:
  void add_head(std::size_t head) {
    std::vector<std::int32_t> plane;
    plane.reserve(static_cast<std::size_t>(map_->block_rows_ * map_->block_cols_));
    for (std::int64_t i = 0; i < map_->block_rows_; ++i) {
      for (std::int64_t j = 0; j < map_->block_cols_; ++j) {
        plane.push_back(block(static_cast<std::int64_t>(head), i, j));
      }
    }
    // Equal blocks have equal numbers, so equal heads have equal planes.
    const std::int64_t planes = map_->planes();
    for (std::int64_t p = 0; p < planes; ++p) {
      const auto begin = map_->planes_.begin() + p * static_cast<std::int64_t>(plane.size());
      if (std::equal(plane.begin(), plane.end(), begin)) {
        map_->plane_of_head_[head] = static_cast<std::int32_t>(p);
        return;
      }
    }
    map_->plane_of_head_[head] = static_cast<std::int32_t>(planes);
    map_->planes_.insert(map_->planes_.end(), plane.begin(), plane.end());
  }

  std::int32_t block(std::int64_t head, std::int64_t i, std::int64_t j) {
    const Range rows{i * kBlock, std::min((i + 1) * kBlock, map_->query_seq_)};
    const Range keys{j * kBlock, std::min((j + 1) * kBlock, map_->key_seq_)};
    bool full = true;
    for (const MaskNode* node : nodes_) {
      const TileKind kind = node->kind(head, rows, keys);
      if (kind == TileKind::kSkip) return kEmptyBlock;
      full = full && kind == TileKind::kFull;
    }
    return full ? kFullBlock : exact_block(head, rows, keys);
  }

  std::int32_t exact_block(std::int64_t head, Range rows, Range keys) {
    Words words{};
    for (std::size_t n = 0; n < nodes_.size(); ++n) {
      nodes_[n]->fill(head, rows, keys, tile_.data());
      for (std::int64_t q = 0; q < rows.size(); ++q) {
        std::uint64_t word = 0;
        for (std::int64_t k = 0; k < keys.size(); ++k) {
          const bool visible = tile_[static_cast<std::size_t>(q * keys.size() + k)] != 0;
          word |= static_cast<std::uint64_t>(visible) << k;
        }
        auto& target = words[static_cast<std::size_t>(q)];
        target = n == 0 ? word : target & word;
      }
    }
    const std::uint64_t all =
        keys.size() == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << keys.size()) - 1;
    const auto used = words.begin() + rows.size();
    if (std::all_of(words.begin(), used, [](std::uint64_t w) { return w == 0; })) {
      return kEmptyBlock;
    }
    if (std::all_of(words.begin(), used, [&](std::uint64_t w) { return w == all; })) {
      return kFullBlock;
    }
    return store_once(words);
  }

  std::int32_t store_once(const Words& words) {
    auto& numbers = number_of_[hash(words)];
    for (std::int32_t n : numbers) {
      if (std::equal(words.begin(), words.end(), map_->mixed_.begin() + n * kBlock)) return n;
    }
    const auto number = static_cast<std::int32_t>(map_->mixed_blocks());
    map_->mixed_.insert(map_->mixed_.end(), words.begin(), words.end());
    numbers.push_back(number);
    return number;
  }

  std::vector<const MaskNode*> nodes_;
  std::shared_ptr<BlockBitmap> map_;
  std::array<std::uint8_t, static_cast<std::size_t>(kBlock* kBlock)> tile_{};
  std::unordered_map<std::uint64_t, std::vector<std::int32_t>> number_of_;
};

BitmapView BlockBitmap::view() const {
  return {plane_of_head_.data(), planes_.data(), mixed_.data(), heads(), query_seq_, key_seq_,
          block_rows_,           block_cols_};
}

std::int64_t BlockBitmap::bytes() const {
  return static_cast<std::int64_t>(planes_.size() * sizeof(std::int32_t) +
                                   mixed_.size() * sizeof(std::uint64_t) +
                                   plane_of_head_.size() * sizeof(std::int32_t));
}

std::int64_t BlockBitmap::planes() const {
  const std::int64_t size = block_rows_ * block_cols_;
  return size == 0 ? 0 : static_cast<std::int64_t>(planes_.size()) / size;
}

std::int64_t BlockBitmap::mixed_blocks() const {
  return static_cast<std::int64_t>(mixed_.size()) / kBlock;
}

std::int64_t BlockBitmap::hash() const {
  std::uint64_t h = static_cast<std::uint64_t>(heads());
  const auto add = [&](std::uint64_t x) { h = (h ^ x) * 0xFF51AFD7ED558CCDU + (h >> 29); };
  for (std::int32_t p : plane_of_head_) add(static_cast<std::uint32_t>(p));
  for (std::int32_t b : planes_) add(static_cast<std::uint32_t>(b));
  for (std::uint64_t w : mixed_) add(w);
  return static_cast<std::int64_t>(h);
}

CompiledMask compile(const Mask& mask, std::int64_t heads, std::int64_t query_seq,
                     std::int64_t key_seq) {
  const auto shape = mask.shape();
  if (shape && (shape->query_seq != query_seq || shape->key_seq != key_seq ||
                (shape->heads != 1 && shape->heads != heads))) {
    const auto text = [](std::int64_t h, std::int64_t q, std::int64_t k) {
      return "[" + std::to_string(h) + ", " + std::to_string(q) + ", " + std::to_string(k) + "]";
    };
    throw Error(ErrorCode::kInvalidArgument,
                "mask: expected shape " + text(heads, query_seq, key_seq) + " or " +
                    text(1, query_seq, key_seq) + " (global lengths), got " +
                    text(shape->heads, shape->query_seq, shape->key_seq));
  }
  CompiledMask compiled;
  std::vector<const MaskNode*> rest;
  split(*mask.node(), compiled.interval, rest);
  if (!rest.empty()) {
    compiled.bitmap =
        BitmapBuilder(std::move(rest), shape ? shape->heads : 1, query_seq, key_seq).build();
  }
  return compiled;
}

}  // namespace ringattn
