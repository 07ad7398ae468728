// SPDX-License-Identifier: Apache-2.0
// Where a hop runs: on which kind of device, in the order of which stream, with whose threads and
// whose memory for as long as one call lasts.
#pragma once

#include <cstddef>
#include <span>

#include "memory.h"
#include "ringattn/communicator.h"
#include "ringattn/executor.h"
#include "ringattn/tensor.h"

namespace ringattn::ffi {

class Place {
 public:
  virtual ~Place() = default;
  virtual Device device() const = 0;
  virtual const Memory& memory() const = 0;
  virtual Stream stream() const = 0;
  virtual Executor& executor() = 0;

  /// At least `bytes`, 64-byte aligned, with any contents; until the next one, or the call's end.
  virtual std::span<std::byte> scratch(std::size_t bytes) = 0;
};

}  // namespace ringattn::ffi
