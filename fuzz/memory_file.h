// SPDX-License-Identifier: Apache-2.0
// The fuzzer's bytes as a file without a disk. Linux only, like the fuzzers.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "io/file.h"

namespace ringattn {

inline File memory_file(const std::uint8_t* data, std::size_t size) {
  const int descriptor = ::memfd_create("fuzz", MFD_CLOEXEC);
  while (size > 0) {
    const ssize_t put = ::write(descriptor, data, size);
    if (put <= 0) __builtin_trap();
    data += put;
    size -= static_cast<std::size_t>(put);
  }
  return {descriptor, "fuzz"};
}

}  // namespace ringattn
