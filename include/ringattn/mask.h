// SPDX-License-Identifier: Apache-2.0
// THE definition of who sees whom. Every schedule, kernel, plan and picture asks here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#if defined(__CUDACC__)
#define RINGATTN_HOST_DEVICE __host__ __device__
#else
#define RINGATTN_HOST_DEVICE
#endif

namespace ringattn {

/// A half-open range of positions or of indices.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  RINGATTN_HOST_DEVICE constexpr bool empty() const { return begin >= end; }
  RINGATTN_HOST_DEVICE constexpr std::int64_t size() const { return empty() ? 0 : end - begin; }
  RINGATTN_HOST_DEVICE constexpr bool contains(std::int64_t x) const {
    return begin <= x && x < end;
  }
  RINGATTN_HOST_DEVICE constexpr bool contains(Range r) const {
    return r.empty() || (begin <= r.begin && r.end <= end);
  }
  friend constexpr bool operator==(const Range&, const Range&) = default;
};

RINGATTN_HOST_DEVICE constexpr Range intersect(Range a, Range b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

/// Floor division, as in Python: -1 div 4 is -1.
RINGATTN_HOST_DEVICE constexpr std::int64_t floor_div(std::int64_t a, std::int64_t b) {
  return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

RINGATTN_HOST_DEVICE constexpr std::int64_t saturating_add(std::int64_t a, std::int64_t b) {
  if (b > 0 && a > INT64_MAX - b) return INT64_MAX;
  if (b < 0 && a < INT64_MIN - b) return INT64_MIN;
  return a + b;
}

/// Causal, windowed and chunked masks: one interval of keys per query, whose two ends never
/// decrease as the query moves on. Query q sees key k if and only if
///     q - left <= k <= q + right   and, with chunk > 0,   q div chunk == k div chunk.
/// Causal is right = 0. A trivially copyable value for hosts and devices.
struct IntervalMask {
  static constexpr std::int64_t kUnbounded = INT64_MAX;

  std::int64_t left = kUnbounded;   // keys seen before the query
  std::int64_t right = kUnbounded;  // keys seen after it
  std::int64_t chunk = 0;           // 0: none

  /// The keys that query q sees.
  RINGATTN_HOST_DEVICE constexpr Range row(std::int64_t q) const {
    Range keys{left == kUnbounded ? INT64_MIN : saturating_add(q, -left),
               right == kUnbounded ? INT64_MAX : saturating_add(saturating_add(q, right), 1)};
    if (chunk > 0) {
      const std::int64_t index = floor_div(q, chunk);
      // The first chunk of the int64 line may begin before it, the last may end after it.
      const std::int64_t begin = index < INT64_MIN / chunk ? INT64_MIN : index * chunk;
      keys = intersect(keys, {begin, saturating_add(begin, chunk)});
    }
    return keys;
  }

  /// The same mask with keys as rows: `m.transposed().row(k)` are the queries that see key k.
  RINGATTN_HOST_DEVICE constexpr IntervalMask transposed() const { return {right, left, chunk}; }

  RINGATTN_HOST_DEVICE constexpr bool visible(std::int64_t q, std::int64_t k) const {
    return row(q).contains(k);
  }
  RINGATTN_HOST_DEVICE constexpr bool full() const {
    return left == kUnbounded && right == kUnbounded && chunk == 0;
  }
  friend constexpr bool operator==(const IntervalMask&, const IntervalMask&) = default;
};

/// The interval mask equal to `a & b`; none if chunks that do not divide each other meet.
constexpr std::optional<IntervalMask> intersect(const IntervalMask& a, const IntervalMask& b) {
  IntervalMask both{a.left < b.left ? a.left : b.left, a.right < b.right ? a.right : b.right, 0};
  const std::int64_t large = a.chunk > b.chunk ? a.chunk : b.chunk;
  const std::int64_t small = a.chunk > b.chunk ? b.chunk : a.chunk;
  if (small > 0 && large % small != 0) return std::nullopt;
  both.chunk = small > 0 ? small : large;
  return both;
}

/// Segment ids (packed documents): visible only where equal; negative is padding, which sees and
/// is seen by nothing. 0 is an ordinary id.
RINGATTN_HOST_DEVICE constexpr bool same_segment(std::int32_t q, std::int32_t k) {
  return q == k && q >= 0;
}

struct MaskNode;  // src/mask.cpp

/// A mask as a value: causal, window, chunk, dense and lazily filled masks, closed under & and |.
/// Positions are global. `mask(head, q, k)` of an interval mask holds for every head and length;
/// a dense or lazy mask has a shape `[query_seq, key_seq]` or `[heads, query_seq, key_seq]`, and
/// only positions inside it may be asked for.
class Mask {
 public:
  /// Everything is visible.
  Mask();

  static Mask full() { return Mask(); }

  /// Key <= query (top-left aligned).
  static Mask causal();

  /// q - left <= k <= q + right, both ends inclusive; none: that side is unbounded. Alone it is
  /// not causal. Throws kInvalidArgument for a negative side.
  static Mask window(std::optional<std::int64_t> left, std::optional<std::int64_t> right);
  static Mask window(std::int64_t both) { return window(both, both); }

  /// Chunked causal (Llama 4): q div size == k div size and k <= q. Throws if size <= 0.
  static Mask chunk(std::int64_t size);

  /// `visible[h][q][k] != 0`, row-major; copied as bits. heads == 1: the same for every head.
  static Mask dense(std::span<const std::uint8_t> visible, std::int64_t heads,
                    std::int64_t query_seq, std::int64_t key_seq);

  /// What an interval says, whose sides may be negative here: left = -1 begins after the query.
  static Mask of(const IntervalMask& interval);

  /// Head h of `heads` sees what heads[h] says, over these lengths.
  static Mask per_head(std::span<const Mask> heads, std::int64_t query_seq, std::int64_t key_seq);

  /// Writes `visible[(q - rows.begin) * keys.size() + (k - keys.begin)]` (0 or 1) for one head.
  using TileFiller =
      std::function<void(std::int64_t head, Range rows, Range keys, std::uint8_t* visible)>;

  /// A mask that is asked tile by tile, never for all of it at once; what a mask_builder gives.
  static Mask lazy(std::int64_t heads, std::int64_t query_seq, std::int64_t key_seq,
                   TileFiller fill);

  friend Mask operator&(const Mask& a, const Mask& b);
  friend Mask operator|(const Mask& a, const Mask& b);

  /// The interval mask equal to this mask, if there is one.
  std::optional<IntervalMask> interval() const;

  /// May head h's query q see key k? Slow: for tests and pictures.
  bool operator()(std::int64_t head, std::int64_t q, std::int64_t k) const;

  /// Shape of a dense or lazy mask; absent for masks that hold for every length.
  struct Shape {
    std::int64_t heads, query_seq, key_seq;
  };
  std::optional<Shape> shape() const;

  /// "causal & window(4096, 0)".
  std::string to_string() const;

  const std::shared_ptr<const MaskNode>& node() const { return node_; }

 private:
  explicit Mask(std::shared_ptr<const MaskNode> node) : node_(std::move(node)) {}
  std::shared_ptr<const MaskNode> node_;
};

}  // namespace ringattn
