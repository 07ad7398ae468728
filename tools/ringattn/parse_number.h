// SPDX-License-Identifier: Apache-2.0
// Strict numbers from the command line: the whole text, in range, or an error that says what was
// expected and what came.
#pragma once

#include <cstdint>
#include <string>

namespace ringattn::tool {

/// `option` is named in the message.
std::int64_t parse_integer(const std::string& option, const std::string& text, std::int64_t least,
                           std::int64_t most);

/// Finite numbers only, between `least` and `most`, both inclusive.
double parse_number(const std::string& option, const std::string& text, double least, double most);

/// Throws Error(kInvalidArgument): "--ring: expected E, got 'text'".
[[noreturn]] void refuse(const std::string& option, const std::string& expected,
                         const std::string& text);

}  // namespace ringattn::tool
