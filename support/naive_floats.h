// SPDX-License-Identifier: Apache-2.0
// A strided tensor of any float dtype, read into contiguous float32 for the naive program. It only
// reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dtype.h"
#include "ringattn/tensor.h"

namespace ringattn::support {

/// [batch, rows, heads, dim] as float32, contiguous.
struct Floats {
  std::int64_t rows = 0, heads = 0, dim = 0;
  std::vector<float> data;

  Floats() = default;
  explicit Floats(const ConstTensorView& v) {
    if (!v.present()) return;
    rows = v.dim(1);
    heads = v.dim(2);
    dim = v.dim(3);
    data.reserve(static_cast<std::size_t>(v.elements()));
    for (std::int64_t b = 0; b < v.dim(0); ++b) {
      for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t h = 0; h < heads; ++h) {
          for (std::int64_t d = 0; d < dim; ++d) {
            data.push_back(static_cast<float>(load(v.dtype, v.data, offset(v, b, i, h) + d)));
          }
        }
      }
    }
  }
  std::size_t index(std::int64_t b, std::int64_t i, std::int64_t h) const {
    return static_cast<std::size_t>(((b * rows + i) * heads + h) * dim);
  }
  const float* at(std::int64_t b, std::int64_t i, std::int64_t h) const {
    return data.data() + index(b, i, h);
  }
};

}  // namespace ringattn::support
