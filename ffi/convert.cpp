// SPDX-License-Identifier: Apache-2.0
#include "convert.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

namespace ringattn::ffi {
namespace {

[[noreturn]] void invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}

std::int64_t round_up(std::int64_t x, std::int64_t unit) { return (x + unit - 1) / unit * unit; }

constexpr std::int64_t kMixedWords = BitmapView::kBlock * 2;  // of one mixed block

std::optional<float> number(double x) {
  return std::isnan(x) ? std::nullopt : std::optional(static_cast<float>(x));
}

}  // namespace

Layout layout_of(std::int64_t layout) {
  switch (layout) {
    case RINGATTN_CONTIGUOUS: return Layout::kContiguous;
    case RINGATTN_ZIGZAG: return Layout::kZigzag;
    case RINGATTN_STRIPED: return Layout::kStriped;
    default: invalid("layout: expected 0, 1 or 2, got " + std::to_string(layout));
  }
}

Problem problem_of(const ringattn_config& c, std::int64_t batch) {
  Problem p;
  p.batch = batch;
  p.query_seq = c.query_seq;
  p.key_seq = c.key_seq;
  p.query_heads = c.query_heads;
  p.kv_heads = c.kv_heads;
  p.head_dim = c.head_dim;
  p.value_dim = c.value_dim;
  if (c.value_dim < 1) invalid("value: expected head_dim >= 1, got " + std::to_string(c.value_dim));
  switch (c.dtype) {
    case RINGATTN_F32: p.dtype = DType::kFloat32; break;
    case RINGATTN_BF16: p.dtype = DType::kBFloat16; break;
    case RINGATTN_F16: p.dtype = DType::kFloat16; break;
    case RINGATTN_F64: p.dtype = DType::kFloat64; break;
    default: invalid("dtype: expected 0 to 3, got " + std::to_string(c.dtype));
  }
  return p;
}

Options options_of(const ringattn_config& c) {
  Options o;
  o.mask = Mask::of({c.left, c.right, c.chunk});
  o.layout = layout_of(c.layout);
  o.softmax_scale = number(c.softmax_scale);
  o.logits_soft_cap = number(c.logits_soft_cap);
  o.segment_ids = (c.flags & RINGATTN_SEGMENT_IDS) != 0;
  o.explicit_positions = (c.flags & RINGATTN_POSITIONS) != 0;
  o.forward_tiles = {c.fwd_q_blocksize, c.fwd_kv_blocksize};
  o.backward_tiles = {c.bwd_q_blocksize, c.bwd_kv_blocksize};
  o.fused_backward = (c.flags & RINGATTN_FUSED_BACKWARD) != 0;
  o.deterministic = (c.flags & RINGATTN_DETERMINISTIC) != 0;
  return o;
}

ringattn_bitmap describe_bitmap(const BlockBitmap& bitmap) {
  const BitmapView view = bitmap.view();
  return {view.heads,           view.query_seq,  view.key_seq,
          view.block_rows,      view.block_cols, static_cast<std::int64_t>(bitmap.blocks().size()),
          bitmap.mixed_blocks()};
}

std::int64_t bitmap_words(const ringattn_bitmap& b) {
  return b.mixed * kMixedWords + b.heads + b.blocks;
}

void write_bitmap(const BlockBitmap& bitmap, std::uint32_t* words) {
  const auto put = [&](auto array) {
    std::memcpy(words, array.data(), array.size_bytes());
    words += array.size_bytes() / sizeof *words;
  };
  put(bitmap.mixed());
  put(bitmap.plane_of_head());
  put(bitmap.blocks());
}

BitmapView read_bitmap(const ringattn_bitmap& b, const std::uint32_t* words, std::int64_t count) {
  const std::array<std::int64_t, 7> numbers = {b.heads,      b.query_seq, b.key_seq, b.block_rows,
                                               b.block_cols, b.blocks,    b.mixed};
  const bool small = std::all_of(numbers.begin(), numbers.end(), [](std::int64_t n) {
    return 0 <= n && n < std::int64_t{1} << 40;
  });
  if (!small || bitmap_words(b) != count) {
    invalid("mask: expected a bitmap of " + std::to_string(count) + " words, got another one");
  }
  BitmapView view;
  view.mixed = reinterpret_cast<const std::uint64_t*>(words);
  view.plane_of_head = reinterpret_cast<const std::int32_t*>(words + b.mixed * kMixedWords);
  view.blocks = view.plane_of_head + b.heads;
  view.heads = b.heads;
  view.query_seq = b.query_seq;
  view.key_seq = b.key_seq;
  view.block_rows = b.block_rows;
  view.block_cols = b.block_cols;
  return view;
}

MessageLayout message_layout(const ringattn_config& c, std::int64_t key_rows) {
  MessageLayout m;
  m.word_bytes = c.dtype == RINGATTN_F32 ? 4 : 2;
  const std::int64_t unit = 4 / m.word_bytes;  // integers begin at multiples of 4 bytes
  m.value = key_rows * c.kv_heads * c.head_dim;
  m.ids = round_up(m.value + key_rows * c.kv_heads * c.value_dim, unit);
  m.positions = m.ids + ((c.flags & RINGATTN_SEGMENT_IDS) != 0 ? key_rows * unit : 0);
  const std::int64_t wide = (c.flags & RINGATTN_POSITIONS64) != 0 ? 2 : 1;
  m.gate = m.positions + ((c.flags & RINGATTN_POSITIONS) != 0 ? key_rows * unit * wide : 0);
  m.words = m.gate + unit;
  return m;
}

std::int32_t report(ringattn_error* error, std::int32_t code, std::string_view message) noexcept {
  if (error != nullptr) {
    error->code = code;
    const std::size_t n = std::min(message.size(), sizeof error->message - 1);
    std::memcpy(error->message, message.data(), n);
    error->message[n] = '\0';
  }
  return code;
}

}  // namespace ringattn::ffi
