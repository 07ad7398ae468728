// SPDX-License-Identifier: Apache-2.0
// A case as part of a test's name.
#pragma once

#include <string>

namespace ringattn::support {

inline std::string test_name(std::string text) {
  for (char& letter : text) {
    if (letter == ',') letter = 't';  // "9,4" reads 9 to 4
    if (letter == '.') letter = 'p';
    if (letter == '-') letter = 'm';
  }
  return text;
}

}  // namespace ringattn::support
