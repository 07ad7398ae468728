// SPDX-License-Identifier: Apache-2.0
// The one exception class of ringattn and its codes. Nothing else is thrown on purpose.
#pragma once

#include <stdexcept>
#include <string>

namespace ringattn {

enum class ErrorCode {
  kInvalidArgument,  // a wrong type, shape or value
  kUnsupported,      // known to the contract, not possible with this build, backend or machine
  kCommunication,    // a peer was lost, a deadline passed, or ranks disagree
  kInternal,         // a broken invariant of ringattn itself
};

/// "invalid argument", "unsupported", ...
constexpr const char* name(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument: return "invalid argument";
    case ErrorCode::kUnsupported: return "unsupported";
    case ErrorCode::kCommunication: return "communication";
    case ErrorCode::kInternal: return "internal";
  }
  return "unknown";
}

/// `what()` names the argument, what was expected and what came.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace ringattn
