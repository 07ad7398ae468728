// SPDX-License-Identifier: Apache-2.0
// Where one tensor lies in a file: what opening gives, before any data is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/file.h"
#include "io/host_tensor.h"

namespace ringattn {

struct TensorEntry {
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  // of its first byte in the file
  std::uint64_t bytes = 0;   // all of them are inside the file
};

/// "[2, 3]".
std::string to_string(std::span<const std::int64_t> shape);

/// Bytes of a tensor; none if an extent is negative or the product of those that are not zero,
/// in bytes, is beyond int64 (so that no stride overflows either).
std::optional<std::uint64_t> bytes_of(DType dtype, std::span<const std::int64_t> shape);

/// All of a tensor.
HostTensor read_tensor(const File& file, const TensorEntry& entry);

/// Rows [begin, end) of dimension `axis`: the part of a file that one rank needs.
HostTensor read_rows(const File& file, const TensorEntry& entry, std::size_t axis,
                     std::int64_t begin, std::int64_t end);

}  // namespace ringattn
