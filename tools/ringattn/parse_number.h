// SPDX-License-Identifier: Apache-2.0
// Strict numbers from the command line: the whole text, in range, or an error that says what was
// expected and what came.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "options.h"

namespace ringattn::tool {

/// `option` is named in the message.
std::int64_t parse_integer(const std::string& option, const std::string& text, std::int64_t least,
                           std::int64_t most);

/// Finite numbers only, between `least` and `most`, both inclusive.
double parse_number(const std::string& option, const std::string& text, double least, double most);

/// "W", "L,R" or "none"; none if both sides are unbounded.
std::optional<Window> parse_window(const std::string& text);

/// Throws Error(kInvalidArgument): "--ring: expected E, got 'text'".
[[noreturn]] void refuse(const std::string& option, const std::string& expected,
                         const std::string& text);

}  // namespace ringattn::tool
