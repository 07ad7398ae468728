// SPDX-License-Identifier: Apache-2.0
// Any bytes as a .safetensors file: either a FileError or tensors that lie inside the file.
#include "io/safetensors.h"

#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ringattn;
  const File file = memory_file(data, size);
  try {
    std::uint64_t bytes = 0;
    for (const auto& [name, entry] : open_safetensors(file)) {
      bytes += entry.bytes;
      if (read_tensor(file, entry).size_bytes() != entry.bytes) __builtin_trap();
      if (entry.shape.empty()) continue;
      const std::int64_t rows = entry.shape.front();
      const Positions half{.runs = {{rows / 2, rows - rows / 2}, {}}};
      if (read_rows(file, entry, 0, half).size_bytes() > entry.bytes) __builtin_trap();
    }
    if (bytes > size) __builtin_trap();  // tensors overlap
  } catch (const FileError&) {
  }
  return 0;
}
