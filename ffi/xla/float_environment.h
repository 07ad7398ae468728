// SPDX-License-Identifier: Apache-2.0
// XLA's threads take subnormal numbers for zero. Here they count: a float16 below 2^-14 passes
// through a subnormal float32, and results are to have the bits of the C++ library.
#pragma once

#include <cfenv>

namespace ringattn::ffi {

/// The default floating-point environment of this thread, until the end of a scope.
class DefaultFloats {
 public:
  DefaultFloats() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloats() { std::fesetenv(&before_); }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
  std::fenv_t before_;
};

}  // namespace ringattn::ffi
