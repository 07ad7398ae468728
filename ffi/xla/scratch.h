// SPDX-License-Identifier: Apache-2.0
// Memory that lasts for one call. XLA lends none on CPUs, and fresh pages for every hop would cost
// more than small hops take: buffers are kept, as many as calls ever ran at once.
#pragma once

#include <cstddef>
#include <span>

namespace ringattn::ffi {

class Scratch {
 public:
  /// At least `bytes`, 64-byte aligned, with any contents.
  explicit Scratch(std::size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  std::span<std::byte> span() const { return memory_; }

 private:
  std::span<std::byte> memory_;
};

}  // namespace ringattn::ffi
