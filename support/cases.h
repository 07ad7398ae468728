// SPDX-License-Identifier: Apache-2.0
// THE table language of tests, benches and the tool: one attention problem as one string, such as
// `b2_sq8192_h32x8_d128_bf16_causal_w4096,0_zigzag_r4`. A case is numbers only; data.h makes its
// tensors. What the library checks (heads that divide, positive caps) is not checked here.
//
// Fields are joined by '_', in any order, each at most once:
//   sq8192               query rows; the only field that is required
//   b2 sk4096            batch (1), key rows (as sq)
//   h32 or h32x8         query heads, and kv heads (as many)
//   d128 dv64            head_dim (64) of query and key, and of value (as d)
//   f32 bf16 f16         dtype (f32)
//   causal chunk512      masks; joined by "and"
//   w128 or w128,0       window: both sides, or left and right; a side may be `none`
//   mask maskh           random dense mask, for all heads or for each
//   seg segq segkv       random packed segments with padding; the one given serves both sides
//   segpad               the same, and the first batch row is all padding
//   pos posfar           explicit random positions; far: beyond int32
//   sink sink3 sinkhx3   one sink per head; three shared by all heads; three for each head
//   infsink              some of the sinks are infinite
//   cap30 scale0.125     soft cap and softmax scale
//   peaked hostile       data: few keys take most of the weight; scores of about 1e4
//   bwd dlse             backward too; with a gradient for lse
//   fused det            fused_backward, deterministic
//   contiguous zigzag striped, r4     layout and ring size (contiguous, 1)
//   qb64 kvb128          tile hints, both passes
//   seed7                of the random data (0)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "ringattn/attention.h"

namespace ringattn::support {

enum class SinkForm : std::uint8_t { kNone, kPerHead, kShared, kManyPerHead };
enum class SegmentForm : std::uint8_t { kNone, kBoth, kQueryOnly, kKeyOnly, kPaddedRow };
enum class PositionForm : std::uint8_t { kNone, kNear, kFar };
enum class MaskForm : std::uint8_t { kNone, kDense, kDensePerHead };
enum class DataForm : std::uint8_t { kNormal, kPeaked, kHostile };

struct Case {
  using Side = std::optional<std::int64_t>;

  std::int64_t batch = 1;
  std::int64_t query_seq = 0;
  std::int64_t key_seq = 0;
  std::int64_t query_heads = 1;
  std::int64_t kv_heads = 1;
  std::int64_t head_dim = 64;
  std::int64_t value_dim = 64;
  DType dtype = DType::kFloat32;
  bool causal = false;
  std::optional<std::pair<Side, Side>> window;
  std::optional<std::int64_t> chunk;
  MaskForm mask = MaskForm::kNone;
  SegmentForm segments = SegmentForm::kNone;
  PositionForm positions = PositionForm::kNone;
  SinkForm sinks = SinkForm::kNone;
  std::int64_t sink_count = 0;  // S of kShared and kManyPerHead
  bool infinite_sinks = false;
  std::optional<float> soft_cap;
  std::optional<float> scale;
  DataForm data = DataForm::kNormal;
  bool backward = false;
  bool dlse = false;
  bool fused = false;
  bool deterministic = false;
  Layout layout = Layout::kContiguous;
  int ring = 1;
  std::int64_t q_block = 0;
  std::int64_t kv_block = 0;
  std::uint64_t seed = 0;

  friend bool operator==(const Case&, const Case&) = default;
};

/// Throws Error(kInvalidArgument) that names the field. Safe for any string.
Case parse_case(std::string_view text);

/// Canonical: fields in the order above, defaults left out; parse_case() gives the case back.
std::string to_string(const Case& c);

/// Is this word meant as a case, rather than as a file? True if it parses, or if it has no '/' and
/// no '.' and starts like a field.
bool looks_like_case(std::string_view text);

/// A small case drawn over every field. The same seed gives the same case on every machine.
Case random_case(std::uint64_t seed);

}  // namespace ringattn::support
