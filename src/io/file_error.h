// SPDX-License-Identifier: Apache-2.0
// What is thrown when a file cannot be read, is malformed or cannot be written. Never thrown for
// what a well-formed file says: that is ringattn::Error.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace ringattn {

class FileError : public std::runtime_error {
 public:
  /// `what()` is "file: message".
  FileError(const std::string& file, const std::string& message)
      : std::runtime_error(file + ": " + message) {}
};

/// Text from a file made fit for one line of a message: printable ASCII in single quotes, other
/// bytes as \xNN, cut after 64 characters.
std::string in_quotes(std::string_view text);

}  // namespace ringattn
