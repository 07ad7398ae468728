// SPDX-License-Identifier: Apache-2.0
#include "io/tensor_entry.h"

#include "ringattn/error.h"

namespace ringattn {

std::string to_string(std::span<const std::int64_t> shape) {
  std::string out = "[";
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (d > 0) out += ", ";
    out += std::to_string(shape[d]);
  }
  return out + "]";
}

std::optional<std::uint64_t> bytes_of(DType dtype, std::span<const std::int64_t> shape) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  std::int64_t product = size_of(dtype);
  bool empty = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    if (extent == 0) {
      empty = true;
    } else if (product > kMost / extent) {
      return std::nullopt;
    } else {
      product *= extent;
    }
  }
  return empty ? 0 : static_cast<std::uint64_t>(product);
}

HostTensor read_tensor(const File& file, const TensorEntry& entry) {
  HostTensor tensor(entry.dtype, entry.shape);
  file.read(entry.offset, {tensor.data(), tensor.size_bytes()});
  return tensor;
}

HostTensor read_rows(const File& file, const TensorEntry& entry, std::size_t axis,
                     std::int64_t begin, std::int64_t end) {
  if (axis >= entry.shape.size() || begin < 0 || end < begin || end > entry.shape[axis]) {
    throw Error(ErrorCode::kInvalidArgument,
                "rows: expected a range of dimension " + std::to_string(axis) + " of " +
                    to_string(entry.shape) + ", got [" + std::to_string(begin) + ", " +
                    std::to_string(end) + ")");
  }
  std::vector<std::int64_t> shape = entry.shape;
  shape[axis] = end - begin;
  HostTensor tensor(entry.dtype, shape);
  if (tensor.size_bytes() == 0) return tensor;
  // Before the axis: so many pieces. From the axis on: bytes of one row.
  std::uint64_t pieces = 1;
  for (std::size_t d = 0; d < axis; ++d) pieces *= static_cast<std::uint64_t>(shape[d]);
  const std::uint64_t piece = tensor.size_bytes() / pieces;
  const std::uint64_t row = piece / static_cast<std::uint64_t>(end - begin);
  const std::uint64_t stride = row * static_cast<std::uint64_t>(entry.shape[axis]);
  for (std::uint64_t i = 0; i < pieces; ++i) {
    file.read(entry.offset + i * stride + static_cast<std::uint64_t>(begin) * row,
              {tensor.data() + i * piece, static_cast<std::size_t>(piece)});
  }
  return tensor;
}

}  // namespace ringattn
