// SPDX-License-Identifier: Apache-2.0
#include "ringattn/mask.h"

#include <algorithm>
#include <vector>

#include "mask_node.h"
#include "ringattn/error.h"
#include "schedule.h"

namespace ringattn {
namespace {

using Child = MaskNode::Child;

template <class T>
Child make_node(T value) {
  return std::make_shared<const MaskNode>(MaskNode{std::move(value)});
}

[[noreturn]] void invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}

std::string side(std::int64_t bound) {
  return bound == IntervalMask::kUnbounded ? "none" : std::to_string(bound);
}

std::string interval_name(const IntervalMask& m) {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : " & ") + part; };
  if (m.chunk > 0) add("chunk(" + std::to_string(m.chunk) + ")");
  if (m.right == 0 && m.chunk == 0) add("causal");
  const bool left = m.left != IntervalMask::kUnbounded;
  const bool right = m.right != IntervalMask::kUnbounded;
  if (left || (right && m.right > 0)) add("window(" + side(m.left) + ", " + side(m.right) + ")");
  return text.empty() ? "full" : text;
}

std::optional<Mask::Shape> common_shape(const std::optional<Mask::Shape>& a,
                                        const std::optional<Mask::Shape>& b) {
  if (!a) return b;
  if (!b) return a;
  const bool heads = a->heads == b->heads || a->heads == 1 || b->heads == 1;
  if (!heads || a->query_seq != b->query_seq || a->key_seq != b->key_seq) {
    const auto text = [](const Mask::Shape& s) {
      return "[" + std::to_string(s.heads) + ", " + std::to_string(s.query_seq) + ", " +
             std::to_string(s.key_seq) + "]";
    };
    invalid("mask: masks of equal shape can be combined, got " + text(*a) + " and " + text(*b));
  }
  return Mask::Shape{std::max(a->heads, b->heads), a->query_seq, a->key_seq};
}

/// fill() of `a & b` or `a | b`.
template <class Combine>
void fill_both(const Child& a, const Child& b, std::int64_t head, Range rows, Range keys,
               std::uint8_t* visible, Combine combine) {
  a->fill(head, rows, keys, visible);
  std::vector<std::uint8_t> other(static_cast<std::size_t>(rows.size() * keys.size()));
  b->fill(head, rows, keys, other.data());
  for (std::size_t i = 0; i < other.size(); ++i) {
    visible[i] = static_cast<std::uint8_t>(combine(visible[i] != 0, other[i] != 0));
  }
}

}  // namespace

TileKind MaskNode::kind(std::int64_t head, Range rows, Range keys) const {
  if (const auto* m = std::get_if<IntervalMask>(&value)) return classify(*m, rows, keys);
  if (const auto* both = std::get_if<And>(&value)) {
    return ringattn::both(both->a->kind(head, rows, keys), both->b->kind(head, rows, keys));
  }
  if (const auto* either = std::get_if<Or>(&value)) {
    const TileKind a = either->a->kind(head, rows, keys);
    const TileKind b = either->b->kind(head, rows, keys);
    if (a == TileKind::kFull || b == TileKind::kFull) return TileKind::kFull;
    return a == TileKind::kSkip ? b : TileKind::kMasked;
  }
  if (const auto* many = std::get_if<PerHead>(&value)) {
    return many->heads[static_cast<std::size_t>(head)]->kind(head, rows, keys);
  }
  return TileKind::kMasked;
}

void MaskNode::fill(std::int64_t head, Range rows, Range keys, std::uint8_t* visible) const {
  if (const auto* m = std::get_if<IntervalMask>(&value)) {
    for (std::int64_t q = rows.begin; q < rows.end; ++q) {
      const Range row = m->row(q);
      for (std::int64_t k = keys.begin; k < keys.end; ++k) {
        *visible++ = static_cast<std::uint8_t>(row.contains(k));
      }
    }
  } else if (const auto* lazy = std::get_if<Lazy>(&value)) {
    lazy->fill(lazy->shape.heads == 1 ? 0 : head, rows, keys, visible);
  } else if (const auto* both = std::get_if<And>(&value)) {
    fill_both(both->a, both->b, head, rows, keys, visible, [](bool a, bool b) { return a && b; });
  } else if (const auto* either = std::get_if<Or>(&value)) {
    fill_both(either->a, either->b, head, rows, keys, visible,
              [](bool a, bool b) { return a || b; });
  } else if (const auto* many = std::get_if<PerHead>(&value)) {
    many->heads[static_cast<std::size_t>(head)]->fill(head, rows, keys, visible);
  }
}

std::optional<Mask::Shape> MaskNode::shape() const {
  if (const auto* lazy = std::get_if<Lazy>(&value)) return lazy->shape;
  if (const auto* both = std::get_if<And>(&value)) {
    return common_shape(both->a->shape(), both->b->shape());
  }
  if (const auto* either = std::get_if<Or>(&value)) {
    return common_shape(either->a->shape(), either->b->shape());
  }
  if (const auto* many = std::get_if<PerHead>(&value)) return many->shape;
  return std::nullopt;
}

std::string MaskNode::to_string() const {
  if (const auto* m = std::get_if<IntervalMask>(&value)) return interval_name(*m);
  if (const auto* both = std::get_if<And>(&value)) {
    return both->a->to_string() + " & " + both->b->to_string();
  }
  if (const auto* either = std::get_if<Or>(&value)) {
    return "(" + either->a->to_string() + " | " + either->b->to_string() + ")";
  }
  const Mask::Shape s = *shape();
  return "mask[" + std::to_string(s.heads) + ", " + std::to_string(s.query_seq) + ", " +
         std::to_string(s.key_seq) + "]";
}

Mask::Mask() : node_(make_node(IntervalMask{})) {}

Mask Mask::causal() { return Mask(make_node(IntervalMask{IntervalMask::kUnbounded, 0, 0})); }

Mask Mask::window(std::optional<std::int64_t> left, std::optional<std::int64_t> right) {
  for (const auto& bound : {left, right}) {
    if (bound && *bound < 0) {
      invalid("sliding_window: expected sides >= 0 or none, got " + std::to_string(*bound));
    }
  }
  return Mask(make_node(IntervalMask{left.value_or(IntervalMask::kUnbounded),
                                     right.value_or(IntervalMask::kUnbounded), 0}));
}

Mask Mask::chunk(std::int64_t size) {
  if (size <= 0) invalid("chunk_size: expected > 0, got " + std::to_string(size));
  return Mask(make_node(IntervalMask{IntervalMask::kUnbounded, 0, size}));
}

Mask Mask::of(const IntervalMask& interval) {
  if (interval.chunk < 0) invalid("chunk_size: expected > 0, got " + side(interval.chunk));
  return Mask(make_node(interval));
}

Mask Mask::per_head(std::span<const Mask> heads, std::int64_t query_seq, std::int64_t key_seq) {
  if (heads.empty()) invalid("mask: expected one mask or more, one for each head, got none");
  MaskNode::PerHead many{{static_cast<std::int64_t>(heads.size()), query_seq, key_seq}, {}};
  for (const Mask& mask : heads) {
    const auto shape = mask.shape();
    if (shape &&
        (shape->heads != 1 || shape->query_seq != query_seq || shape->key_seq != key_seq)) {
      invalid("mask: expected masks of shape [1, " + std::to_string(query_seq) + ", " +
              std::to_string(key_seq) + "] for each head, got " + mask.to_string());
    }
    many.heads.push_back(mask.node_);
  }
  return Mask(make_node(std::move(many)));
}

Mask Mask::lazy(std::int64_t heads, std::int64_t query_seq, std::int64_t key_seq, TileFiller fill) {
  if (heads < 1 || query_seq < 0 || key_seq < 0) {
    invalid("mask: expected shape [heads >= 1, query_seq >= 0, key_seq >= 0], got [" +
            std::to_string(heads) + ", " + std::to_string(query_seq) + ", " +
            std::to_string(key_seq) + "]");
  }
  if (!fill) invalid("mask: expected a function that fills tiles, got an empty one");
  return Mask(make_node(MaskNode::Lazy{{heads, query_seq, key_seq}, std::move(fill)}));
}

Mask Mask::dense(std::span<const std::uint8_t> visible, std::int64_t heads, std::int64_t query_seq,
                 std::int64_t key_seq) {
  std::int64_t count = 0;
  const bool overflow = heads < 1 || query_seq < 0 || key_seq < 0 ||
                        __builtin_mul_overflow(heads, query_seq, &count) ||
                        __builtin_mul_overflow(count, key_seq, &count);
  if (overflow || static_cast<std::uint64_t>(count) != visible.size()) {
    invalid("mask: expected heads * query_seq * key_seq values for shape [" +
            std::to_string(heads) + ", " + std::to_string(query_seq) + ", " +
            std::to_string(key_seq) + "], got " + std::to_string(visible.size()));
  }
  auto bits = std::make_shared<std::vector<bool>>(visible.size());
  for (std::size_t i = 0; i < visible.size(); ++i) (*bits)[i] = visible[i] != 0;
  return lazy(
      heads, query_seq, key_seq,
      [bits, query_seq, key_seq](std::int64_t head, Range rows, Range keys, std::uint8_t* tile) {
        for (std::int64_t q = rows.begin; q < rows.end; ++q) {
          const std::int64_t row = (head * query_seq + q) * key_seq;
          for (std::int64_t k = keys.begin; k < keys.end; ++k) {
            *tile++ = (*bits)[static_cast<std::size_t>(row + k)] ? 1 : 0;
          }
        }
      });
}

Mask operator&(const Mask& a, const Mask& b) {
  const auto ia = a.interval();
  const auto ib = b.interval();
  if (ia && ib) {
    if (const auto both = intersect(*ia, *ib)) return Mask(make_node(*both));
  }
  common_shape(a.shape(), b.shape());
  return Mask(make_node(MaskNode::And{a.node_, b.node_}));
}

Mask operator|(const Mask& a, const Mask& b) {
  const auto ia = a.interval();
  const auto ib = b.interval();
  if (ia && (ia->full() || ia == ib)) return a;
  if (ib && ib->full()) return b;
  common_shape(a.shape(), b.shape());
  return Mask(make_node(MaskNode::Or{a.node_, b.node_}));
}

std::optional<IntervalMask> Mask::interval() const {
  if (const auto* m = std::get_if<IntervalMask>(&node_->value)) return *m;
  return std::nullopt;
}

bool Mask::operator()(std::int64_t head, std::int64_t q, std::int64_t k) const {
  std::uint8_t visible = 0;
  node_->fill(head, {q, q + 1}, {k, k + 1}, &visible);
  return visible != 0;
}

std::optional<Mask::Shape> Mask::shape() const { return node_->shape(); }

std::string Mask::to_string() const { return node_->to_string(); }

}  // namespace ringattn
