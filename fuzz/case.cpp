// SPDX-License-Identifier: Apache-2.0
// Any text as a CASE: either an Error that says which argument is invalid, or a case whose
// canonical text means the same.
#include "ringattn/error.h"
#include "support/cases.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ringattn;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)support::looks_like_case(text);
  try {
    const support::Case parsed = support::parse_case(text);
    if (support::parse_case(support::to_string(parsed)) != parsed) __builtin_trap();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInvalidArgument) __builtin_trap();
  }
  return 0;
}
