// SPDX-License-Identifier: Apache-2.0
// What the file tests share: a folder that disappears, files of given bytes, hand-made headers.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "io/file_error.h"
#include "io/host_tensor.h"

namespace ringattn::testing {

/// A new folder for one test, removed with all it holds.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "ringattn-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

  /// How many entries it holds, hidden ones too: nothing partial may be left.
  std::ptrdiff_t entries() const {
    return std::distance(std::filesystem::directory_iterator(path_), {});
  }

 private:
  std::string path_;
};

inline void put(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string get(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::string little_endian(std::uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
  return out;
}

/// A .safetensors file of this header and so many bytes of data.
inline std::string safetensors(std::string_view header, std::size_t data_bytes) {
  return little_endian(header.size(), 8) + std::string(header) + std::string(data_bytes, '\1');
}

/// A .npy file of version 1 of this header and so many bytes of data.
inline std::string npy(std::string_view header, std::size_t data_bytes, char major = 1) {
  return std::string("\x93NUMPY") + major + '\0' +
         little_endian(header.size(), major == 1 ? 2 : 4) + std::string(header) +
         std::string(data_bytes, '\1');
}

/// The folder `examples` of the sources.
inline std::string examples() { return RINGATTN_SOURCE_DIR "/examples"; }

/// Runs `call` and expects a FileError whose message holds `file` and `part`.
template <class Call>
void expect_file_error(Call call, const std::string& file, const std::string& part) {
  try {
    call();
    ADD_FAILURE() << "no error; expected: " << part;
  } catch (const FileError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find(file), std::string::npos) << message;
    EXPECT_NE(message.find(part), std::string::npos) << message << "\nexpected: " << part;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

/// A tensor whose bytes are 1, 2, 3, ... (0 and 1 for bool).
inline HostTensor counting(DType dtype, std::vector<std::int64_t> shape) {
  HostTensor tensor(dtype, std::move(shape));
  for (std::size_t i = 0; i < tensor.size_bytes(); ++i) {
    tensor.data()[i] = static_cast<std::byte>(dtype == DType::kBool ? i & 1 : (i + 1) & 0xFF);
  }
  return tensor;
}

inline void expect_same(const HostTensor& a, const HostTensor& b) {
  EXPECT_EQ(a.dtype(), b.dtype());
  EXPECT_EQ(a.shape(), b.shape());
  EXPECT_TRUE(std::equal(a.data(), a.data() + a.size_bytes(), b.data(), b.data() + b.size_bytes()));
}

}  // namespace ringattn::testing
