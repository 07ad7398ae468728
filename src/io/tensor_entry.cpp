// SPDX-License-Identifier: Apache-2.0
#include "io/tensor_entry.h"

#include "ringattn/error.h"

namespace ringattn {
namespace {

/// The shape of a shard; refuses rows outside the tensor.
std::vector<std::int64_t> shape_of_rows(const TensorEntry& entry, std::size_t axis,
                                        const Positions& rows) {
  bool inside = axis < entry.shape.size() && rows.list == nullptr;
  for (const Run& run : rows.runs) {
    const std::int64_t last = run.first + (run.count - 1) * rows.stride;
    inside = inside && run.count >= 0 &&
             (run.count == 0 || (run.first >= 0 && last < entry.shape[axis]));
  }
  if (!inside) {
    throw Error(ErrorCode::kInvalidArgument,
                "rows: expected some of dimension " + std::to_string(axis) + " of " +
                    to_string(entry.shape) + ", got " + std::to_string(rows.size()) + " from " +
                    std::to_string(rows.runs[0].first) + " on");
  }
  std::vector<std::int64_t> shape = entry.shape;
  shape[axis] = rows.size();
  return shape;
}

/// Calls stretch(offset in the file, offset in the shard, bytes) for whatever lies together in
/// both.
template <class Stretch>
void for_each_stretch(const TensorEntry& entry, std::size_t axis, const Positions& rows,
                      const Stretch& stretch) {
  if (rows.size() == 0 || entry.bytes == 0) return;
  std::uint64_t pieces = 1;  // dimensions before the axis
  for (std::size_t d = 0; d < axis; ++d) pieces *= static_cast<std::uint64_t>(entry.shape[d]);
  const std::uint64_t piece = entry.bytes / pieces;
  const std::uint64_t row = piece / static_cast<std::uint64_t>(entry.shape[axis]);
  std::size_t at = 0;
  for (std::uint64_t i = 0; i < pieces; ++i) {
    for (const Run& run : rows.runs) {
      const bool together = rows.stride == 1;
      const std::int64_t stretches = run.count == 0 ? 0 : (together ? 1 : run.count);
      const std::uint64_t bytes = row * static_cast<std::uint64_t>(together ? run.count : 1);
      for (std::int64_t s = 0; s < stretches; ++s) {
        const auto first = static_cast<std::uint64_t>(run.first + s * rows.stride);
        stretch(entry.offset + i * piece + first * row, at, static_cast<std::size_t>(bytes));
        at += static_cast<std::size_t>(bytes);
      }
    }
  }
}

}  // namespace

TensorShapes shapes_of(const TensorMap& tensors) {
  TensorShapes shapes;
  for (const auto& [name, tensor] : tensors) shapes[name] = {tensor.dtype(), tensor.shape()};
  return shapes;
}

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
                     const Positions& rows) {
  HostTensor tensor(entry.dtype, shape_of_rows(entry, axis, rows));
  for_each_stretch(entry, axis, rows,
                   [&](std::uint64_t in_file, std::size_t in_memory, std::size_t bytes) {
                     file.read(in_file, {tensor.data() + in_memory, bytes});
                   });
  return tensor;
}

void write_rows(FileWriter& file, const TensorEntry& entry, std::size_t axis, const Positions& rows,
                std::span<const std::byte> bytes) {
  const auto expected = bytes_of(entry.dtype, shape_of_rows(entry, axis, rows));
  if (bytes.size() != expected) {
    throw Error(ErrorCode::kInternal, "rows: expected " + std::to_string(expected.value_or(0)) +
                                          " bytes, got " + std::to_string(bytes.size()));
  }
  for_each_stretch(entry, axis, rows,
                   [&](std::uint64_t in_file, std::size_t in_memory, std::size_t count) {
                     file.write_at(in_file, bytes.subspan(in_memory, count));
                   });
}

}  // namespace ringattn
