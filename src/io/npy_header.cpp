// SPDX-License-Identifier: Apache-2.0
#include "io/npy_header.h"

#include <limits>
#include <set>

#include "io/file_error.h"

namespace ringattn {
namespace {

/// A cursor over the text. Every method consumes what it names or throws.
class Parser {
 public:
  Parser(const std::string& file, std::string_view text) : file_(file), text_(text) {}

  NpyHeader header() {
    NpyHeader header;
    std::set<std::string> seen;
    expect('{');
    while (!accept('}')) {
      const std::string key = string("a key");
      if (!seen.insert(key).second) fail("duplicate key " + in_quotes(key));
      expect(':');
      entry(key, header);
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_spaces();
    if (at_ != text_.size()) fail("text after the dictionary");
    for (const char* key : {"descr", "fortran_order", "shape"}) {
      if (!seen.contains(key)) fail("missing key '" + std::string(key) + "'");
    }
    return header;
  }

 private:
  void entry(const std::string& key, NpyHeader& header) {
    if (key == "descr") {
      skip_spaces();
      if (at_ < text_.size() && text_[at_] == '[') {
        fail("expected a plain dtype, got a structured one");
      }
      header.descr = string("descr");
    } else if (key == "fortran_order") {
      header.fortran_order = boolean();
    } else if (key == "shape") {
      header.shape = tuple();
    } else {
      fail("unknown key " + in_quotes(key));
    }
  }

  std::string string(const std::string& what) {
    skip_spaces();
    if (at_ == text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) {
      fail("expected " + what + " in quotes");
    }
    const char quote = text_[at_++];
    const std::size_t end = text_.find(quote, at_);
    if (end == std::string_view::npos) fail("a string without end");
    const std::string_view value = text_.substr(at_, end - at_);
    if (value.find('\\') != std::string_view::npos) fail("a string with an escape");
    at_ = end + 1;
    return std::string(value);
  }

  bool boolean() {
    skip_spaces();
    for (const bool value : {true, false}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_).starts_with(word)) {
        at_ += word.size();
        return value;
      }
    }
    fail("fortran_order: expected True or False");
  }

  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> shape;
    expect('(');
    bool comma = true;
    while (!accept(')')) {
      if (!comma) fail("shape: expected ',' or ')'");
      shape.push_back(extent());
      comma = accept(',');
    }
    if (shape.size() == 1 && !comma) fail("shape: expected a tuple, got a number in brackets");
    return shape;
  }

  std::int64_t extent() {
    skip_spaces();
    if (at_ < text_.size() && text_[at_] == '-') fail("shape: expected sizes >= 0");
    constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
    const std::size_t begin = at_;
    std::int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const std::int64_t digit = text_[at_] - '0';
      if (value > (kMost - digit) / 10) fail("shape: a size overflows 64 bits");
      value = value * 10 + digit;
    }
    if (at_ == begin) fail("shape: expected an integer");
    return value;
  }

  bool accept(char c) {
    skip_spaces();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!accept(c)) fail(std::string("expected '") + c + "'");
  }

  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }

  [[noreturn]] void fail(const std::string& message) const {
    const std::string got = at_ < text_.size() ? in_quotes(text_.substr(at_, 16)) : "its end";
    throw FileError(
        file_, "header: " + message + ", at byte " + std::to_string(at_) + " of it (" + got + ")");
  }

  const std::string& file_;
  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

NpyHeader parse_npy_header(const std::string& file, std::string_view text) {
  return Parser(file, text).header();
}

}  // namespace ringattn
