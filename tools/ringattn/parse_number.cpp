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

std::optional<Window> parse_window(const std::string& text) {
  const auto side = [&](const std::string& part) -> std::optional<std::int64_t> {
    if (part == "none") return std::nullopt;
    constexpr const char* kExpected = "W, L,R or none, each at least 0";
    if (part.empty() || part.find_first_not_of("0123456789") != std::string::npos) {
      refuse("--sliding-window", kExpected, text);
    }
    return parse_integer("--sliding-window", part, 0, INT64_MAX);
  };
  const std::size_t comma = text.find(',');
  const auto left = side(text.substr(0, comma));
  const auto right = comma == std::string::npos ? left : side(text.substr(comma + 1));
  if (!left && !right) return std::nullopt;
  return Window(left, right);
}

}  // namespace ringattn::tool
