// SPDX-License-Identifier: Apache-2.0
#include "input_shapes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "io/tensor_entry.h"
#include "ringattn/error.h"

namespace ringattn::tool {
namespace {

using Shape = std::vector<std::int64_t>;

constexpr std::array kKnown = {"query",       "key",  "value", "q_segment_ids", "kv_segment_ids",
                               "softmax_aux", "mask", "dout",  "q_positions",   "kv_positions"};

/// One tensor after the other, each against what the ones before it say.
class Checker {
 public:
  Checker(const Headers& headers, const Settings& settings, const std::string& source)
      : headers_(headers), settings_(settings), source_(source) {}

  Problem check() {
    names();
    data();
    integers();
    sinks();
    mask();
    return problem_;
  }

 private:
  [[noreturn]] void refuse(const std::string& name, const std::string& expected,
                           const std::string& got) const {
    refuse_tensor(name, expected, got, source_);
  }

  const Header* find(const std::string& name) const {
    return uses(headers_, name, settings_) ? &headers_.at(name) : nullptr;
  }

  void names() const {
    if (headers_.contains("bias")) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("bias: ringattn adds no bias to scores (in {})", source_));
    }
    for (const auto& [name, header] : headers_) {
      if (!is_input(name)) {
        refuse("unknown tensor", fmt::format("only {}", fmt::join(kKnown, ", ")), in_quotes(name));
      }
    }
    for (const char* name : {"query", "key", "value"}) {
      if (find(name) == nullptr) refuse(name, "this tensor", "none");
    }
    if (settings_.backward && find("dout") == nullptr) {
      refuse("dout", "this tensor, for --backward", "none");
    }
    for (const auto& [name, header] : headers_) {
      const bool empty =
          std::find(header.shape.begin(), header.shape.end(), 0) != header.shape.end();
      // An empty softmax_aux is refused by its shape, below.
      if (empty && name != "softmax_aux" && find(name) != nullptr) {
        refuse(name, "at least one element", "shape " + to_string(header.shape));
      }
    }
  }

  void shape(const std::string& name, const Shape& expected) const {
    const Header* header = find(name);
    if (header != nullptr && header->shape != expected) {
      refuse(name, "shape " + to_string(expected), to_string(header->shape));
    }
  }

  void float_dtype(const std::string& name) const {
    const DType dtype = find(name)->dtype;
    const std::string message = fmt::format("{}: expected dtype f32, bf16 or f16, got {} (in {})",
                                            name, ringattn::name(dtype), source_);
    if (dtype == DType::kFloat64) throw Error(ErrorCode::kUnsupported, message);
    if (dtype != DType::kFloat32 && dtype != DType::kBFloat16 && dtype != DType::kFloat16) {
      throw Error(ErrorCode::kInvalidArgument, message);
    }
  }

  void data() {
    for (const char* name : {"query", "key", "value", "dout"}) {
      const Header* header = find(name);
      if (header == nullptr) continue;
      float_dtype(name);
      if (header->shape.size() != 4) {
        refuse(name, "4 dimensions [batch, seq, heads, head_dim]", to_string(header->shape));
      }
      const DType first = find("query")->dtype;
      if (!settings_.dtype && header->dtype != first) {
        refuse(name, fmt::format("dtype {}, as query has", ringattn::name(first)),
               ringattn::name(header->dtype));
      }
    }
    const Shape& q = find("query")->shape;
    const Shape& k = find("key")->shape;
    const Shape& v = find("value")->shape;
    shape("key", {q[0], k[1], k[2], q[3]});
    shape("value", {q[0], k[1], k[2], v[3]});
    shape("dout", {q[0], q[1], q[2], v[3]});
    problem_.batch = q[0];
    problem_.query_seq = q[1];
    problem_.key_seq = k[1];
    problem_.query_heads = q[2];
    problem_.kv_heads = k[2];
    problem_.head_dim = q[3];
    problem_.value_dim = v[3];
    problem_.dtype = settings_.dtype.value_or(find("query")->dtype);
    if (q[2] % k[2] != 0) {
      refuse("key", fmt::format("heads that divide the {} of query", q[2]), std::to_string(k[2]));
    }
  }

  void integers() const {
    for (const char* name : {"q_segment_ids", "kv_segment_ids", "q_positions", "kv_positions"}) {
      const Header* header = find(name);
      if (header != nullptr && header->dtype != DType::kInt32 && header->dtype != DType::kInt64) {
        refuse(name, "dtype i32 or i64", ringattn::name(header->dtype));
      }
    }
    shape("q_segment_ids", {problem_.batch, problem_.query_seq});
    shape("kv_segment_ids", {problem_.batch, problem_.key_seq});
    shape("q_positions", {problem_.query_seq});
    shape("kv_positions", {problem_.key_seq});
    both("q_positions", "kv_positions");
    if (problem_.query_seq != problem_.key_seq) both("q_segment_ids", "kv_segment_ids");
  }

  void both(const std::string& a, const std::string& b) const {
    if (find(a) != nullptr && find(b) == nullptr) refuse(b, "this tensor beside " + a, "none");
    if (find(b) != nullptr && find(a) == nullptr) refuse(a, "this tensor beside " + b, "none");
  }

  void sinks() const {
    const Header* header = find("softmax_aux");
    if (header == nullptr) return;
    float_dtype("softmax_aux");
    const Shape& s = header->shape;
    const std::int64_t heads = problem_.query_heads;
    const bool fits = (s.size() == 1 && s[0] > 0) || (s.size() == 2 && s[0] == heads && s[1] > 0);
    if (!fits) {
      refuse("softmax_aux", fmt::format("shape [{}], [S] or [{}, S]", heads, heads), to_string(s));
    }
  }

  void mask() const {
    const Header* header = find("mask");
    if (header == nullptr) return;
    if (header->dtype != DType::kBool) {
      refuse("mask", "dtype bool", ringattn::name(header->dtype));
    }
    const Shape flat = {problem_.query_seq, problem_.key_seq};
    const Shape per_head = {problem_.query_heads, problem_.query_seq, problem_.key_seq};
    if (header->shape != flat && header->shape != per_head) {
      refuse("mask", fmt::format("shape {} or {}", to_string(flat), to_string(per_head)),
             to_string(header->shape));
    }
    if (settings_.masks()) {
      refuse("mask", "no --causal, --sliding-window or --chunk-size beside it", "one of them");
    }
  }

  const Headers& headers_;
  const Settings& settings_;
  const std::string& source_;
  Problem problem_;
};

}  // namespace

Problem check_headers(const Headers& headers, const Settings& settings, const std::string& source) {
  return Checker(headers, settings, source).check();
}

bool uses(const Headers& headers, const std::string& name, const Settings& settings) {
  return headers.contains(name) && (name != "dout" || settings.backward);
}

bool is_input(const std::string& name) {
  return std::find(kKnown.begin(), kKnown.end(), name) != kKnown.end();
}

void refuse_tensor(const std::string& name, const std::string& expected, const std::string& got,
                   const std::string& source) {
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("{}: expected {}, got {} (in {})", name, expected, got, source));
}

}  // namespace ringattn::tool
