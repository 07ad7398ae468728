// SPDX-License-Identifier: Apache-2.0
// Which tensors IN may hold, of which dtype and global shape. It sees no data.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "options.h"
#include "ringattn/attention.h"

namespace ringattn::tool {

struct Header {
  DType dtype;
  std::vector<std::int64_t> shape;
};
using Headers = std::map<std::string, Header>;

/// Checks names, dtypes and shapes; the problem they describe. Throws Error with the tensor's name
/// and `source`.
Problem check_headers(const Headers& headers, const Settings& settings, const std::string& source);

/// Is the tensor there and used? dout is not without --backward.
bool uses(const Headers& headers, const std::string& name, const Settings& settings);

/// Is it the name of a tensor that IN may hold?
bool is_input(const std::string& name);

/// Throws kInvalidArgument: "name: expected E, got G (in source)".
[[noreturn]] void refuse_tensor(const std::string& name, const std::string& expected,
                                const std::string& got, const std::string& source);

}  // namespace ringattn::tool
