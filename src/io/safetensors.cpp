// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <nlohmann/json.hpp>
#include <tuple>
#include <vector>

#include "io/safetensors_header.h"

namespace ringattn {
namespace {

constexpr std::uint64_t kPrefix = 8;  // the header's length, little-endian
// The format's own limit.
constexpr std::uint64_t kLongestHeader = 100'000'000;

std::string read_header(const File& file) {
  if (file.size() < kPrefix) {
    throw FileError(file.name(),
                    "too short for a .safetensors file: " + std::to_string(file.size()) + " bytes");
  }
  std::array<std::byte, kPrefix> prefix{};
  file.read(0, prefix);
  std::uint64_t length = 0;
  for (std::size_t i = kPrefix; i-- > 0;) {
    length = length << 8 | std::to_integer<std::uint64_t>(prefix[i]);
  }
  const std::uint64_t most = std::min(file.size() - kPrefix, kLongestHeader);
  if (length > most) {
    throw FileError(file.name(), "header: expected at most " + std::to_string(most) +
                                     " bytes, got a length of " + std::to_string(length));
  }
  std::string text(static_cast<std::size_t>(length), '\0');
  file.read(kPrefix, std::as_writable_bytes(std::span(text)));
  return text;
}

std::string interval(const HeaderTensor& tensor) {
  return "[" + std::to_string(tensor.begin) + ", " + std::to_string(tensor.end) + "]";
}

/// Offsets against shape and dtype, by itself.
void check_extent(const File& file, const HeaderTensor& tensor, std::uint64_t data_bytes) {
  const std::string where = in_quotes(tensor.name) + ": ";
  if (tensor.end < tensor.begin || tensor.end > data_bytes) {
    throw FileError(file.name(), where + "data_offsets: expected a range of the " +
                                     std::to_string(data_bytes) + " bytes of data, got " +
                                     interval(tensor));
  }
  const auto bytes = bytes_of(tensor.dtype, tensor.shape);
  if (!bytes) {
    throw FileError(file.name(), where + "shape " + to_string(tensor.shape) + " overflows 64 bits");
  }
  if (*bytes != tensor.end - tensor.begin) {
    throw FileError(file.name(), where + "data_offsets: expected " + std::to_string(*bytes) +
                                     " bytes for " + safetensors_name(tensor.dtype) + " " +
                                     to_string(tensor.shape) + ", got " + interval(tensor));
  }
}

/// Sorted by place, each begins where the one before ended, the last with the file.
void check_tiling(const File& file, std::vector<HeaderTensor>& tensors, std::uint64_t data_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  std::uint64_t end = 0;
  const HeaderTensor* before = nullptr;
  for (const HeaderTensor& tensor : tensors) {
    if (tensor.begin < end) {
      throw FileError(file.name(), in_quotes(tensor.name) + ": data_offsets " + interval(tensor) +
                                       " overlap " + in_quotes(before->name) + " at " +
                                       interval(*before));
    }
    if (tensor.begin > end) {
      throw FileError(file.name(), "a hole of " + std::to_string(tensor.begin - end) +
                                       " bytes before " + in_quotes(tensor.name) + " at " +
                                       interval(tensor));
    }
    end = tensor.end;
    before = &tensor;
  }
  if (end != data_bytes) {
    throw FileError(file.name(), "trailing bytes: the tensors end at byte " + std::to_string(end) +
                                     " of " + std::to_string(data_bytes) + " bytes of data");
  }
}

}  // namespace

std::map<std::string, TensorEntry> open_safetensors(const File& file) {
  const std::string text = read_header(file);
  std::vector<HeaderTensor> tensors = parse_safetensors_header(file.name(), text);
  const std::uint64_t data = kPrefix + text.size();
  for (const HeaderTensor& tensor : tensors) check_extent(file, tensor, file.size() - data);
  check_tiling(file, tensors, file.size() - data);
  std::map<std::string, TensorEntry> entries;
  for (HeaderTensor& tensor : tensors) {
    entries[tensor.name] = {tensor.dtype, std::move(tensor.shape), data + tensor.begin,
                            tensor.end - tensor.begin};
  }
  return entries;
}

SafetensorsHead safetensors_head(const TensorShapes& shapes) {
  std::vector<TensorShapes::const_iterator> order;
  for (auto it = shapes.begin(); it != shapes.end(); ++it) order.push_back(it);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return size_of(a->second.dtype) > size_of(b->second.dtype);
  });
  SafetensorsHead head;
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::uint64_t end = 0;
  for (const auto& it : order) {
    const auto& [name, tensor] = *it;
    const std::uint64_t bytes = bytes_of(tensor.dtype, tensor.shape).value_or(0);
    head.entries[name] = {tensor.dtype, tensor.shape, end, bytes};
    header[name] = {{"dtype", safetensors_name(tensor.dtype)},
                    {"shape", tensor.shape},
                    {"data_offsets", {end, end + bytes}}};
    end += bytes;
  }
  std::string text = header.dump();
  while (text.size() % kPrefix != 0) text += ' ';
  for (std::size_t i = 0; i < kPrefix; ++i) {
    head.bytes += static_cast<char>(text.size() >> (8 * i) & 0xFF);
  }
  head.bytes += text;
  for (auto& [name, entry] : head.entries) entry.offset += head.bytes.size();
  return head;
}

}  // namespace ringattn
