// SPDX-License-Identifier: Apache-2.0
// A case as text. Kept apart from the parser: the two agree because a test says so.
#include <array>
#include <charconv>

#include "support/cases.h"

namespace ringattn::support {
namespace {

/// Shortest text that reads back as the same float.
std::string text(float x) {
  std::array<char, 64> buffer;
  const auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), x);
  return {buffer.data(), result.ptr};
}

std::string side_text(const Case::Side& side) { return side ? std::to_string(*side) : "none"; }

class Writer {
 public:
  void word(bool on, const std::string& field) {
    if (!on) return;
    if (!text_.empty()) text_ += '_';
    text_ += field;
  }
  void number(bool on, const char* name, std::int64_t value) {
    word(on, name + std::to_string(value));
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

void write_masks(const Case& c, Writer& out) {
  out.word(c.causal, "causal");
  if (c.window) {
    const auto& [left, right] = *c.window;
    out.word(left == right, "w" + side_text(left));
    out.word(left != right, "w" + side_text(left) + "," + side_text(right));
  }
  if (c.chunk) out.number(true, "chunk", *c.chunk);
  out.word(c.mask == MaskForm::kDense, "mask");
  out.word(c.mask == MaskForm::kDensePerHead, "maskh");
  out.word(c.segments == SegmentForm::kBoth, "seg");
  out.word(c.segments == SegmentForm::kQueryOnly, "segq");
  out.word(c.segments == SegmentForm::kKeyOnly, "segkv");
  out.word(c.segments == SegmentForm::kPaddedRow, "segpad");
  out.word(c.positions == PositionForm::kNear, "pos");
  out.word(c.positions == PositionForm::kFar, "posfar");
}

void write_numbers(const Case& c, Writer& out) {
  out.word(c.sinks == SinkForm::kPerHead, "sink");
  out.number(c.sinks == SinkForm::kShared, "sink", c.sink_count);
  out.number(c.sinks == SinkForm::kManyPerHead, "sinkhx", c.sink_count);
  out.word(c.infinite_sinks, "infsink");
  if (c.soft_cap) out.word(true, "cap" + text(*c.soft_cap));
  if (c.scale) out.word(true, "scale" + text(*c.scale));
  out.word(c.data == DataForm::kPeaked, "peaked");
  out.word(c.data == DataForm::kHostile, "hostile");
}

}  // namespace

std::string to_string(const Case& c) {
  Writer out;
  out.number(c.batch != 1, "b", c.batch);
  out.number(true, "sq", c.query_seq);
  out.number(c.key_seq != c.query_seq, "sk", c.key_seq);
  const bool grouped = c.kv_heads != c.query_heads;
  out.word(true,
           "h" + std::to_string(c.query_heads) + (grouped ? "x" + std::to_string(c.kv_heads) : ""));
  out.number(true, "d", c.head_dim);
  out.number(c.value_dim != c.head_dim, "dv", c.value_dim);
  out.word(true, name(c.dtype));
  write_masks(c, out);
  write_numbers(c, out);
  out.word(c.backward, "bwd");
  out.word(c.dlse, "dlse");
  out.word(c.fused, "fused");
  out.word(c.deterministic, "det");
  out.word(c.layout != Layout::kContiguous, name(c.layout));
  out.number(c.ring != 1, "r", c.ring);
  out.number(c.q_block != 0, "qb", c.q_block);
  out.number(c.kv_block != 0, "kvb", c.kv_block);
  out.word(c.seed != 0, "seed" + std::to_string(c.seed));
  return out.take();
}

}  // namespace ringattn::support
