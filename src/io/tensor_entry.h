// SPDX-License-Identifier: Apache-2.0
// Where one tensor lies in a file: what opening gives, before any data is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/file.h"
#include "io/host_tensor.h"
#include "ringattn/layout.h"

namespace ringattn {

struct TensorEntry {
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  // of its first byte in the file
  std::uint64_t bytes = 0;   // all of them are inside the file
};

/// What a tensor will be, before there is one.
struct TensorShape {
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;
};
using TensorShapes = std::map<std::string, TensorShape>;

TensorShapes shapes_of(const TensorMap& tensors);

/// "[2, 3]".
std::string to_string(std::span<const std::int64_t> shape);

/// Bytes of a tensor; none if an extent is negative or the product of those that are not zero,
/// in bytes, is beyond int64 (so that no stride overflows either).
std::optional<std::uint64_t> bytes_of(DType dtype, std::span<const std::int64_t> shape);

/// All of a tensor.
HostTensor read_tensor(const File& file, const TensorEntry& entry);

/// The rows of dimension `axis` that one rank holds, in the order of `rows`; nothing else is read.
/// Throws kInvalidArgument for rows that are not there.
HostTensor read_rows(const File& file, const TensorEntry& entry, std::size_t axis,
                     const Positions& rows);

/// Writes them back: `bytes` are what read_rows() gave. Several processes may write rows of their
/// own at once.
void write_rows(FileWriter& file, const TensorEntry& entry, std::size_t axis, const Positions& rows,
                std::span<const std::byte> bytes);

}  // namespace ringattn
