// SPDX-License-Identifier: Apache-2.0
// Any bytes as a .npy file: either a FileError or a tensor that fills the rest of the file.
#include "io/npy.h"

#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ringattn;
  const File file = memory_file(data, size);
  try {
    const TensorEntry entry = open_npy(file);
    if (entry.offset + entry.bytes != size) __builtin_trap();
    if (read_tensor(file, entry).size_bytes() != entry.bytes) __builtin_trap();
    if (entry.shape.size() < 2) return 0;
    const std::int64_t rows = entry.shape[1];
    const Positions half{.runs = {{0, rows / 2}, {}}};
    if (read_rows(file, entry, 1, half).size_bytes() > entry.bytes) __builtin_trap();
  } catch (const FileError&) {
  }
  return 0;
}
