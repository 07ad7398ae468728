// SPDX-License-Identifier: Apache-2.0
// The JSON header of a .safetensors file, read event by event: no document is built, so a hostile
// header costs no more memory than its own size, however deep it nests.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ringattn/tensor.h"

namespace ringattn {

/// One tensor as the header tells it; begin and end count from the first byte of the data.
struct HeaderTensor {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// In the header's order, names unique. Throws FileError, naming `file`.
std::vector<HeaderTensor> parse_safetensors_header(const std::string& file, std::string_view text);

/// "F32", "BF16", ...
const char* safetensors_name(DType dtype);

}  // namespace ringattn
