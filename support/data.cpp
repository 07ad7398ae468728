// SPDX-License-Identifier: Apache-2.0
#include "support/data.h"

#include <limits>
#include <numeric>
#include <utility>

#include "dtype.h"
#include "ringattn/error.h"
#include "support/random.h"

namespace ringattn::support {
namespace {

// Every tensor has its own stream, so that one more of them changes no other.
enum Stream : std::uint64_t {
  kQuery = 1,
  kKey,
  kValue,
  kDout,
  kDlse,
  kSinks,
  kMask,
  kSegments,
  kQueryPositions,
  kKeyPositions
};

constexpr std::int64_t kMaxElements = std::int64_t{1} << 33;  // 32 GiB of float32

// Query and key times these: the standard deviation of a score, 1 for normal data at the default
// scale, grows with their product.
constexpr double kPeakedFactor = 2.5;     // scores of about 6: weights up to 0.99, as in real data
constexpr double kHostileFactor = 100.0;  // scores of about 1e4: exp() without a maximum overflows

HostTensor make(DType dtype, std::vector<std::int64_t> shape) {
  std::int64_t elements = 1;
  for (std::int64_t extent : shape) {
    if (__builtin_mul_overflow(elements, std::max<std::int64_t>(extent, 1), &elements) ||
        elements > kMaxElements) {
      throw Error(ErrorCode::kInvalidArgument,
                  "case: expected tensors of at most 2^33 elements, got more");
    }
  }
  return {dtype, std::move(shape)};
}

HostTensor normal(const Case& c, Stream stream, DType dtype, std::vector<std::int64_t> shape,
                  double factor = 1.0) {
  HostTensor t = make(dtype, std::move(shape));
  const std::int64_t n = t.elements();
  for (std::int64_t i = 0; i < n; ++i) {
    store(dtype, t.data(), i,
          factor * random_normal(c.seed, stream, static_cast<std::uint64_t>(i)));
  }
  return t;
}

HostTensor make_sinks(const Case& c) {
  std::vector<std::int64_t> shape = {c.query_heads};
  if (c.sinks == SinkForm::kShared) shape = {c.sink_count};
  if (c.sinks == SinkForm::kManyPerHead) shape = {c.query_heads, c.sink_count};
  HostTensor t = normal(c, kSinks, DType::kFloat32, shape);
  for (std::int64_t i = 0; c.infinite_sinks && i < t.elements(); i += 3) {
    const bool up = (random_bits(c.seed, kSinks, static_cast<std::uint64_t>(i)) & 1) != 0;
    const float infinity = std::numeric_limits<float>::infinity();
    t.as<float>()[i] = up ? infinity : -infinity;
  }
  return t;
}

/// Documents of random lengths, then padding. Odd batch rows number them downwards.
HostTensor make_segments(const Case& c, std::int64_t length) {
  HostTensor t = make(DType::kInt32, {c.batch, length});
  for (std::int64_t b = 0; b < c.batch; ++b) {
    Random random(c.seed + static_cast<std::uint64_t>(b), kSegments);
    std::int32_t* row = t.as<std::int32_t>() + b * length;
    const bool padded = c.segments == SegmentForm::kPaddedRow && b == 0;
    const std::int64_t used = padded ? 0 : length - random.between(0, length / 6);
    std::int32_t id = 0;
    for (std::int64_t i = 0; i < used; ++id) {
      const std::int64_t end =
          std::min(used, i + random.between(1, std::max<std::int64_t>(length / 3, 1)));
      for (; i < end; ++i) row[i] = b % 2 == 0 ? id : 1000000 - id;
    }
    for (std::int64_t i = used; i < length; ++i) row[i] = -1;
  }
  return t;
}

/// Any positions in any order; a permutation where a dense mask bounds them.
HostTensor make_positions(const Case& c, Stream stream, std::int64_t length) {
  constexpr std::int64_t kFarAway = std::int64_t{1} << 40;
  HostTensor t = make(DType::kInt64, {length});
  auto* position = t.as<std::int64_t>();
  Random random(c.seed, stream);
  std::iota(position, position + length, std::int64_t{0});
  for (std::int64_t i = length - 1; i > 0; --i)
    std::swap(position[i], position[random.between(0, i)]);
  for (std::int64_t i = 0; i < length; ++i) {
    if (c.mask == MaskForm::kNone) position[i] += random.between(0, length / 4);
    if (c.positions == PositionForm::kFar) position[i] += kFarAway;
  }
  return t;
}

/// Blocks that are empty, full or speckled, and rows that see nothing. The block is no multiple
/// of any tile.
HostTensor make_mask(const Case& c) {
  const bool per_head = c.mask == MaskForm::kDensePerHead;
  constexpr std::int64_t kRows = 21;
  constexpr std::int64_t kKeys = 37;
  std::vector<std::int64_t> shape = {c.query_seq, c.key_seq};
  if (per_head) shape.insert(shape.begin(), c.query_heads);
  HostTensor t = make(DType::kBool, shape);
  auto* visible = t.as<std::uint8_t>();
  const auto bits = [&](std::int64_t head, std::int64_t a, std::int64_t b) {
    return random_bits(c.seed + static_cast<std::uint64_t>(head), kMask,
                       static_cast<std::uint64_t>(a << 32 ^ b));
  };
  for (std::int64_t h = 0; h < (per_head ? c.query_heads : 1); ++h) {
    for (std::int64_t q = 0; q < c.query_seq; ++q) {
      const bool empty = bits(h, q, -1) % 11 == 0;
      for (std::int64_t k = 0; k < c.key_seq; ++k) {
        const std::uint64_t block = bits(h, -2 - q / kRows, k / kKeys) % 4;
        const bool seen = block == 0 || (block != 1 && (bits(h, q, k) & 1) != 0);
        *visible++ = !empty && seen ? 1 : 0;
      }
    }
  }
  return t;
}

ConstTensorView view_of(const HostTensor& t) {
  return t.shape().empty() ? ConstTensorView() : t.view();
}

}  // namespace

RingInputs CaseData::inputs() const {
  RingInputs in;
  in.query = view_of(query);
  in.key = view_of(key);
  in.value = view_of(value);
  in.q_segment_ids = view_of(q_segment_ids);
  in.kv_segment_ids = view_of(kv_segment_ids);
  in.q_positions = view_of(q_positions);
  in.kv_positions = view_of(kv_positions);
  in.sinks = view_of(sinks);
  in.dout = view_of(dout);
  in.dlse = view_of(dlse);
  return in;
}

CaseData make_structure(const Case& c) {
  CaseData data;
  if (c.segments != SegmentForm::kNone && c.segments != SegmentForm::kKeyOnly) {
    data.q_segment_ids = make_segments(c, c.query_seq);
  }
  if (c.segments != SegmentForm::kNone && c.segments != SegmentForm::kQueryOnly) {
    data.kv_segment_ids = make_segments(c, c.key_seq);
  }
  if (c.positions != PositionForm::kNone) {
    data.q_positions = make_positions(c, kQueryPositions, c.query_seq);
    data.kv_positions = make_positions(c, kKeyPositions, c.key_seq);
  }
  if (c.mask != MaskForm::kNone) data.mask = make_mask(c);
  return data;
}

CaseData make_data(const Case& c) {
  double factor = 1.0;
  if (c.data == DataForm::kPeaked) factor = kPeakedFactor;
  if (c.data == DataForm::kHostile) factor = kHostileFactor;
  CaseData data = make_structure(c);
  const std::int64_t b = c.batch;
  data.query = normal(c, kQuery, c.dtype, {b, c.query_seq, c.query_heads, c.head_dim}, factor);
  data.key = normal(c, kKey, c.dtype, {b, c.key_seq, c.kv_heads, c.head_dim}, factor);
  data.value = normal(c, kValue, c.dtype, {b, c.key_seq, c.kv_heads, c.value_dim});
  if (c.sinks != SinkForm::kNone) data.sinks = make_sinks(c);
  if (c.backward) {
    data.dout = normal(c, kDout, c.dtype, {b, c.query_seq, c.query_heads, c.value_dim});
  }
  if (c.dlse) {
    data.dlse = normal(c, kDlse, DType::kFloat32, {b, c.query_heads, c.query_seq});
  }
  return data;
}

Problem make_problem(const Case& c) {
  Problem p;
  p.batch = c.batch;
  p.query_seq = c.query_seq;
  p.key_seq = c.key_seq;
  p.query_heads = c.query_heads;
  p.kv_heads = c.kv_heads;
  p.head_dim = c.head_dim;
  p.value_dim = c.value_dim;
  p.dtype = c.dtype;
  return p;
}

Options make_options(const Case& c, const CaseData& data) {
  Options o;
  if (c.causal) o.mask = o.mask & Mask::causal();
  if (c.window) o.mask = o.mask & Mask::window(c.window->first, c.window->second);
  if (c.chunk) o.mask = o.mask & Mask::chunk(*c.chunk);
  if (c.mask != MaskForm::kNone) {
    const std::int64_t heads = c.mask == MaskForm::kDense ? 1 : c.query_heads;
    const auto* bits = data.mask.as<std::uint8_t>();
    o.mask = o.mask & Mask::dense({bits, data.mask.size_bytes()}, heads, c.query_seq, c.key_seq);
  }
  o.layout = c.layout;
  o.softmax_scale = c.scale;
  o.logits_soft_cap = c.soft_cap;
  o.segment_ids = c.segments != SegmentForm::kNone;
  o.explicit_positions = c.positions != PositionForm::kNone;
  o.forward_tiles = {c.q_block, c.kv_block};
  o.backward_tiles = {c.q_block, c.kv_block};
  o.fused_backward = c.fused;
  o.deterministic = c.deterministic;
  return o;
}

}  // namespace ringattn::support
