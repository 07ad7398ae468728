// SPDX-License-Identifier: Apache-2.0
// The header of a .npy file: a Python dictionary of exactly three entries. No Python is run and
// nothing else of its syntax is understood.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ringattn {

struct NpyHeader {
  std::string descr;  // such as "<f4"
  bool fortran_order = false;
  std::vector<std::int64_t> shape;
};

/// Throws FileError, naming `file`.
NpyHeader parse_npy_header(const std::string& file, std::string_view text);

}  // namespace ringattn
