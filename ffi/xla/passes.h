// SPDX-License-Identifier: Apache-2.0
// One hop forward, one hop backward, wherever it runs. They wait for no other device, and what they
// refuse was refused before, when the program was traced or compiled.
#pragma once

#include <cstdint>
#include <string>

#include "convert.h"
#include "ringattn.h"
#include "xla/ffi/api/ffi.h"
#include "xla/float_environment.h"
#include "xla/hop.h"
#include "xla/place.h"

namespace ringattn::ffi {

using Words = xla::ffi::Span<const std::int64_t>;

/// What XLA hands to a handler of a hop.
struct HopCall {
  HopCall(Words config_words, Words bitmap_words, std::int64_t sinks, std::int64_t offset,
          std::int64_t first, std::int64_t last, std::int64_t packed, std::int64_t adds);

  ringattn_config config;
  HopAttributes hop;
  std::int64_t sinks_rank;
};

/// The attributes of a hop's handler, behind what it asks of its context.
template <class Binding>
auto with_attributes(Binding binding) {
  return std::move(binding)
      .template Attr<Words>("config")
      .template Attr<Words>("bitmap")
      .template Attr<std::int64_t>("sinks_rank")
      .template Attr<std::int64_t>("offset")
      .template Attr<std::int64_t>("first")
      .template Attr<std::int64_t>("last")
      .template Attr<std::int64_t>("packed")
      .template Attr<std::int64_t>("adds");
}

void forward_hop(Place& place, const HopCall& call, xla::ffi::RemainingArgs args,
                 xla::ffi::RemainingRets rets);
void backward_hop(Place& place, const HopCall& call, xla::ffi::RemainingArgs args,
                  xla::ffi::RemainingRets rets);

/// Runs `work` and turns what it throws into XLA's errors.
template <class Work>
xla::ffi::Error run(Work work) {
  const DefaultFloats floats;
  ringattn_error error;
  const int code = guarded(&error, work);
  const std::string message = std::string("ring_attention: ") + error.message;
  switch (code) {
    case RINGATTN_OK: return xla::ffi::Error::Success();
    case RINGATTN_INVALID_ARGUMENT: return xla::ffi::Error::InvalidArgument(message);
    case RINGATTN_UNSUPPORTED: return {xla::ffi::ErrorCode::kUnimplemented, message};
    default: return xla::ffi::Error::Internal(message);
  }
}

}  // namespace ringattn::ffi
