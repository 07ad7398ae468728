// SPDX-License-Identifier: Apache-2.0
// The expression behind a Mask. Only mask.cpp builds nodes; bitmap.cpp compiles them.
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "bitmap.h"
#include "ringattn/mask.h"

namespace ringattn {

struct MaskNode {
  using Child = std::shared_ptr<const MaskNode>;

  struct Lazy {
    Mask::Shape shape;
    Mask::TileFiller fill;
  };
  struct And {
    Child a, b;
  };
  struct Or {
    Child a, b;
  };

  struct PerHead {
    Mask::Shape shape;
    std::vector<Child> heads;
  };

  std::variant<IntervalMask, Lazy, And, Or, PerHead> value;

  /// Cheap and safe: kMasked when only looking at every pair would tell.
  TileKind kind(std::int64_t head, Range rows, Range keys) const;

  /// visible[(q - rows.begin) * keys.size() + (k - keys.begin)] = 0 or 1.
  void fill(std::int64_t head, Range rows, Range keys, std::uint8_t* visible) const;

  std::optional<Mask::Shape> shape() const;
  std::string to_string() const;
};

}  // namespace ringattn
