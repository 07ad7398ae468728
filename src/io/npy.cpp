// SPDX-License-Identifier: Apache-2.0
#include "io/npy.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "io/npy_header.h"

namespace ringattn {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kPrefix = 8;  // magic, major, minor
// Far above any header of plain dtypes; NumPy itself stops at 10,000 bytes.
constexpr std::uint64_t kLongestHeader = 1 << 16;

struct Descr {
  DType dtype;
  std::string_view text;
};
constexpr std::array<Descr, 7> kDescrs = {{{DType::kFloat32, "<f4"},
                                           {DType::kFloat16, "<f2"},
                                           {DType::kBFloat16, "<V2"},
                                           {DType::kFloat64, "<f8"},
                                           {DType::kInt32, "<i4"},
                                           {DType::kInt64, "<i8"},
                                           {DType::kBool, "|b1"}}};

DType dtype_of(const File& file, const std::string& descr) {
  for (const Descr& known : kDescrs) {
    if (descr == known.text) return known.dtype;
  }
  const std::string got = ", got descr " + in_quotes(descr);
  if (descr.starts_with('>')) throw FileError(file.name(), "expected little-endian data" + got);
  if (descr.find('O') != std::string::npos) {
    throw FileError(file.name(), "expected plain numbers, not an array of objects" + got);
  }
  throw FileError(file.name(),
                  "unknown dtype: expected <f4, <f2, <V2 (bf16), <i4, <i8 or |b1" + got);
}

std::uint64_t little_endian(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) {
    value = value << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  }
  return value;
}

/// The header's text; `end` becomes the offset of the data.
std::string read_header(const File& file, std::uint64_t& end) {
  std::array<std::byte, kPrefix + 4> prefix{};
  if (file.size() < kPrefix + 2) throw FileError(file.name(), "too short for a .npy file");
  file.read(0, {prefix.data(), kPrefix});
  if (std::string_view(reinterpret_cast<const char*>(prefix.data()), kMagic.size()) != kMagic) {
    throw FileError(file.name(), "expected a .npy file, the first bytes are not \\x93NUMPY");
  }
  const int major = std::to_integer<int>(prefix[6]);
  const int minor = std::to_integer<int>(prefix[7]);
  if (major < 1 || major > 3 || minor != 0) {
    throw FileError(file.name(), "expected .npy version 1.0, 2.0 or 3.0, got " +
                                     std::to_string(major) + "." + std::to_string(minor));
  }
  const std::size_t width = major == 1 ? 2 : 4;
  if (file.size() < kPrefix + width) throw FileError(file.name(), "too short for a .npy file");
  file.read(kPrefix, {prefix.data() + kPrefix, width});
  const std::uint64_t length = little_endian({prefix.data() + kPrefix, width});
  const std::uint64_t room = file.size() - kPrefix - width;
  if (length > room || length > kLongestHeader) {
    throw FileError(file.name(), "header: expected at most " +
                                     std::to_string(std::min(room, kLongestHeader)) +
                                     " bytes, got a length of " + std::to_string(length));
  }
  std::string text(static_cast<std::size_t>(length), '\0');
  file.read(kPrefix + width, std::as_writable_bytes(std::span(text)));
  end = kPrefix + width + length;
  return text;
}

}  // namespace

TensorEntry open_npy(const File& file) {
  TensorEntry entry;
  const std::string text = read_header(file, entry.offset);
  const NpyHeader header = parse_npy_header(file.name(), text);
  entry.dtype = dtype_of(file, header.descr);
  if (header.fortran_order) {
    throw FileError(file.name(), "expected C order, got fortran_order True");
  }
  entry.shape = header.shape;
  const auto bytes = bytes_of(entry.dtype, entry.shape);
  if (!bytes) {
    throw FileError(file.name(), "shape " + to_string(entry.shape) + " overflows 64 bits");
  }
  entry.bytes = *bytes;
  if (file.size() - entry.offset != entry.bytes) {
    throw FileError(file.name(), "shape " + to_string(entry.shape) + " of " + name(entry.dtype) +
                                     ": expected " + std::to_string(entry.bytes) +
                                     " bytes of data, got " +
                                     std::to_string(file.size() - entry.offset));
  }
  return entry;
}

std::string npy_head(const TensorShape& tensor) {
  std::string text = "{'descr': '";
  for (const Descr& known : kDescrs) {
    if (known.dtype == tensor.dtype) text += known.text;
  }
  text += "', 'fortran_order': False, 'shape': (";
  for (const std::int64_t extent : tensor.shape) text += std::to_string(extent) + ", ";
  // Python's tuples: "(3,)" needs its comma, "(3, 4)" has no last one, "()" has none at all.
  if (tensor.shape.size() == 1) text.pop_back();
  if (tensor.shape.size() > 1) text.resize(text.size() - 2);
  text += "), }";
  // The data begins at a multiple of 64 bytes, after a newline.
  constexpr std::size_t kAlign = 64;
  while ((kPrefix + 2 + text.size() + 1) % kAlign != 0) text += ' ';
  text += '\n';
  std::string head(kMagic);
  head += {'\x01', '\x00', static_cast<char>(text.size() & 0xFF),
           static_cast<char>(text.size() >> 8 & 0xFF)};
  return head + text;
}

}  // namespace ringattn
