// SPDX-License-Identifier: Apache-2.0
#include "parse_number.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "io/file_error.h"
#include "ringattn/error.h"

namespace ringattn::tool {

void refuse(const std::string& option, const std::string& expected, const std::string& text) {
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("{}: expected {}, got {}", option, expected, in_quotes(text)));
}

std::int64_t parse_integer(const std::string& option, const std::string& text, std::int64_t least,
                           std::int64_t most) {
  std::int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value < least || value > most) {
    refuse(option, fmt::format("an integer from {} to {}", least, most), text);
  }
  return value;
}

double parse_number(const std::string& option, const std::string& text, double least, double most) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || !std::isfinite(value) || value < least ||
      value > most) {
    refuse(option, fmt::format("a number from {:g} to {:g}", least, most), text);
  }
  return value;
}

}  // namespace ringattn::tool
