// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors_header.h"

#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "io/file_error.h"

namespace ringattn {
namespace {

constexpr std::array<DType, 7> kDTypes = {DType::kFloat32, DType::kBFloat16, DType::kFloat16,
                                          DType::kFloat64, DType::kInt32,    DType::kInt64,
                                          DType::kBool};

/// Follows the events of {"name": {"dtype": s, "shape": [n...], "data_offsets": [n, n]}, ...,
/// "__metadata__": {s: s, ...}} and refuses every other one at once.
class Events : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Events(const std::string& file) : file_(file) {}

  std::vector<HeaderTensor> tensors;

  bool null() override { return refuse("null"); }
  bool boolean(bool value) override { return refuse(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { return refuse(std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { return refuse(text); }
  bool binary(binary_t&) override { return refuse("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (where_ == Where::kShape) {
      constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
      if (value > static_cast<std::uint64_t>(kMost)) return refuse(std::to_string(value));
      tensors.back().shape.push_back(static_cast<std::int64_t>(value));
    } else if (where_ == Where::kOffsets && offsets_ < 2) {
      (offsets_ == 0 ? tensors.back().begin : tensors.back().end) = value;
      ++offsets_;
    } else {
      return refuse(std::to_string(value));
    }
    return true;
  }

  bool string(string_t& value) override {
    if (where_ == Where::kMetadata && has_key_) {
      has_key_ = false;
      return true;
    }
    if (where_ != Where::kTensor || field_ != "dtype") return refuse(in_quotes(value));
    tensors.back().dtype = dtype_of(value);
    field_.clear();
    return true;
  }

  bool start_object(std::size_t) override {
    if (where_ == Where::kStart) {
      where_ = Where::kTop;
    } else if (where_ == Where::kTop) {
      where_ = top_key_ == "__metadata__" ? Where::kMetadata : Where::kTensor;
      fields_.clear();
      if (where_ == Where::kTensor) tensors.push_back({.name = top_key_, .shape = {}});
    } else {
      return refuse("an object");
    }
    return true;
  }

  bool key(string_t& name) override {
    if (where_ == Where::kTop) {
      if (!names_.insert(name).second) fail("duplicate name " + in_quotes(name));
      top_key_ = name;
      return true;
    }
    if (!fields_.insert(name).second) {
      fail(in_quotes(top_key_) + ": duplicate key " + in_quotes(name));
    }
    has_key_ = true;
    field_ = name;
    if (where_ == Where::kTensor && name != "dtype" && name != "shape" && name != "data_offsets") {
      fail(in_quotes(top_key_) + ": unknown key " + in_quotes(name));
    }
    return true;
  }

  bool end_object() override {
    if (where_ == Where::kTop) {
      where_ = Where::kStart;
      return true;
    }
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      if (where_ == Where::kTensor && !fields_.contains(field)) {
        fail(in_quotes(top_key_) + ": missing key '" + field + "'");
      }
    }
    where_ = Where::kTop;
    return true;
  }

  bool start_array(std::size_t) override {
    if (where_ != Where::kTensor || (field_ != "shape" && field_ != "data_offsets")) {
      return refuse("an array");
    }
    where_ = field_ == "shape" ? Where::kShape : Where::kOffsets;
    offsets_ = 0;
    return true;
  }

  bool end_array() override {
    if (where_ == Where::kOffsets && offsets_ != 2) return refuse("fewer than two");
    where_ = Where::kTensor;
    field_.clear();
    return true;
  }

  bool parse_error(std::size_t at, const std::string&,
                   const nlohmann::detail::exception&) override {
    fail("not valid JSON, at byte " + std::to_string(at) + " of it");
  }

 private:
  enum class Where { kStart, kTop, kMetadata, kTensor, kShape, kOffsets };

  DType dtype_of(const std::string& text) const {
    for (const DType dtype : kDTypes) {
      if (text == safetensors_name(dtype)) return dtype;
    }
    fail(in_quotes(top_key_) + ": unknown dtype: expected F32, BF16, F16, I32, I64 or BOOL, got " +
         in_quotes(text));
  }

  /// The value that came is not the one expected here.
  bool refuse(const std::string& got) const {
    std::string expected = "an object with a dtype, a shape and data_offsets";
    std::string place = where_ == Where::kStart ? "" : in_quotes(top_key_) + ": ";
    if (where_ == Where::kStart) expected = "an object";
    if (where_ == Where::kMetadata) expected = "metadata: only strings";
    if (where_ == Where::kShape) expected = "shape: integers from 0 to 2^63 - 1";
    if (where_ == Where::kOffsets) expected = "data_offsets: two integers from 0 to 2^64 - 1";
    if (where_ == Where::kTensor) {
      expected = field_ == "dtype" ? "dtype: a string" : field_ + ": an array";
    }
    fail(place + "expected " + expected + ", got " + got);
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw FileError(file_, "header: " + message);
  }

  const std::string& file_;
  Where where_ = Where::kStart;
  std::string top_key_;           // the tensor
  std::string field_;             // of it; empty once its value has come
  bool has_key_ = false;          // a metadata key waits for its string
  int offsets_ = 0;               // of data_offsets, so far
  std::set<std::string> names_;   // of tensors
  std::set<std::string> fields_;  // of this object
};

}  // namespace

std::vector<HeaderTensor> parse_safetensors_header(const std::string& file, std::string_view text) {
  if (!text.starts_with('{')) throw FileError(file, "header: expected '{' as the first byte");
  // The JSON reader takes a NUL for the end of its input and would not see what follows.
  if (text.find('\0') != std::string_view::npos) {
    throw FileError(file, "header: a NUL byte, at byte " + std::to_string(text.find('\0')));
  }
  Events events(file);
  nlohmann::json::sax_parse(text, &events);
  return std::move(events.tensors);
}

const char* safetensors_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "F32";
    case DType::kBFloat16: return "BF16";
    case DType::kFloat16: return "F16";
    case DType::kFloat64: return "F64";
    case DType::kInt32: return "I32";
    case DType::kInt64: return "I64";
    case DType::kBool: return "BOOL";
  }
  return "?";
}

}  // namespace ringattn
