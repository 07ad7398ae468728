// SPDX-License-Identifier: Apache-2.0
// Random cases: small, odd, and over every field. Sizes are bounded so that float64 truth takes
// milliseconds; shapes at the edges (nothing, one row, fewer rows than ranks) come up often.
#include <array>

#include "support/cases.h"
#include "support/random.h"

namespace ringattn::support {
namespace {

template <class T, std::size_t N>
T pick(Random& random, const std::array<T, N>& of) {
  return of[static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(N) - 1))];
}

std::int64_t draw_length(Random& random) {
  switch (random.between(0, 7)) {
    case 0: return random.between(0, 3);
    case 1: return random.between(4, 16);
    case 2: return random.between(120, 200);
    default: return random.between(17, 80);
  }
}

void draw_shape(Random& random, Case& c) {
  constexpr std::array<std::int64_t, 12> kDims = {1, 2, 3, 5, 8, 16, 17, 24, 32, 33, 64, 80};
  c.batch = random.one_in(40) ? 0 : random.between(1, 3);
  c.query_seq = draw_length(random);
  c.key_seq = random.one_in(3) ? draw_length(random) : c.query_seq;
  c.kv_heads = random.between(1, 3);
  c.query_heads = c.kv_heads * random.between(1, 3);
  c.head_dim = pick(random, kDims);
  c.value_dim = random.one_in(4) ? pick(random, kDims) : c.head_dim;
  c.dtype =
      pick(random, std::array{DType::kFloat32, DType::kFloat32, DType::kBFloat16, DType::kFloat16});
}

Case::Side draw_side(Random& random, std::int64_t length) {
  if (random.one_in(4)) return std::nullopt;
  if (random.one_in(4)) return 0;
  return random.between(0, length);
}

void draw_masks(Random& random, Case& c) {
  const std::int64_t length = c.query_seq > c.key_seq ? c.query_seq : c.key_seq;
  switch (random.between(0, 9)) {
    case 0: break;
    case 1:
    case 2: c.mask = random.one_in(2) ? MaskForm::kDense : MaskForm::kDensePerHead; break;
    default:
      c.causal = random.one_in(2);
      if (random.one_in(2)) {
        c.window = {draw_side(random, length), draw_side(random, length)};
        if (!c.window->first && !c.window->second) c.window->first = length / 3;
      }
      if (random.one_in(4)) c.chunk = random.between(1, length + 2);
  }
  if (random.one_in(3)) {
    constexpr std::array kForms = {SegmentForm::kBoth, SegmentForm::kBoth, SegmentForm::kPaddedRow};
    c.segments = pick(random, kForms);
    if (c.query_seq == c.key_seq && random.one_in(4)) {
      c.segments = random.one_in(2) ? SegmentForm::kQueryOnly : SegmentForm::kKeyOnly;
    }
  }
  if (random.one_in(6)) c.positions = PositionForm::kNear;
  if (c.mask == MaskForm::kNone && random.one_in(12)) c.positions = PositionForm::kFar;
}

void draw_numbers(Random& random, Case& c) {
  if (random.one_in(3)) {
    constexpr std::array kForms = {SinkForm::kPerHead, SinkForm::kShared, SinkForm::kManyPerHead};
    c.sinks = pick(random, kForms);
    if (c.sinks != SinkForm::kPerHead) c.sink_count = random.between(1, 5);
    if (c.sinks == SinkForm::kShared && c.sink_count == c.query_heads) ++c.sink_count;
    c.infinite_sinks = random.one_in(10);
  }
  if (random.one_in(4)) c.soft_cap = pick(random, std::array{0.5F, 5.0F, 30.0F, 50.0F});
  if (random.one_in(4)) c.scale = pick(random, std::array{0.125F, 1.0F, 0.0F, -0.25F, 0.37F});
  if (random.one_in(6)) c.data = DataForm::kPeaked;
}

}  // namespace

Case random_case(std::uint64_t seed) {
  constexpr std::uint64_t kStream = 0x63617365;  // apart from the data of the same seed
  Random random(seed, kStream);
  Case c;
  draw_shape(random, c);
  draw_masks(random, c);
  draw_numbers(random, c);
  c.backward = !random.one_in(4);
  c.dlse = c.backward && random.one_in(5);
  c.fused = random.one_in(4);
  c.deterministic = random.one_in(4);
  c.layout = pick(random, std::array{Layout::kContiguous, Layout::kZigzag, Layout::kStriped});
  c.ring = static_cast<int>(random.between(1, 8));
  constexpr std::array<std::int64_t, 4> kBlocks = {8, 16, 32, 64};
  if (random.one_in(3)) c.q_block = pick(random, kBlocks);
  if (random.one_in(3)) c.kv_block = pick(random, kBlocks);
  c.seed = seed & INT64_MAX;
  return c;
}

}  // namespace ringattn::support
