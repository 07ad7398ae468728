// SPDX-License-Identifier: Apache-2.0
#include "handshake.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"
#include "memory.h"
#include "ring.h"

namespace ringattn {
namespace {

// Of every version, and the version comes first: so two versions can tell each other that they
// differ.
constexpr std::size_t kRecordBytes = 2048;

using Fields = std::vector<std::pair<std::string, std::string>>;

std::string side(std::int64_t reach) {
  return reach == IntervalMask::kUnbounded ? "unbounded" : std::to_string(reach);
}

/// Nine digits tell any two floats apart.
std::string number(float x) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.9g", static_cast<double>(x));
  return text.data();
}

std::string hexadecimal(std::int64_t x) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(x));
  return text.data();
}

std::string yes(bool x) { return x ? "yes" : "no"; }

/// Everything that must agree, as people read it.
Fields fields(const Plan& plan, std::string_view version) {
  const Problem& p = plan.problem();
  const Options& o = plan.options();
  const IntervalMask& m = plan.mask().interval;
  const BlockBitmap* bitmap = plan.mask().bitmap.get();
  const auto tile = [&](Pass pass) { return plan.tiles(pass); };
  const auto text = [](std::int64_t x) { return std::to_string(x); };
  return {
      {"ringattn version", std::string(version)},
      {"batch", text(p.batch)},
      {"query length", text(p.query_seq)},
      {"key length", text(p.key_seq)},
      {"query heads", text(p.query_heads)},
      {"kv heads", text(p.kv_heads)},
      {"head_dim", text(p.head_dim)},
      {"value head_dim", text(p.value_dim)},
      {"dtype", name(p.dtype)},
      {"device", p.device == Device::kCpu ? "cpu" : "cuda"},
      {"backend", std::string(plan.backend().name())},
      {"sliding_window left", side(m.left)},
      {"sliding_window right, or causal", side(m.right)},
      {"chunk_size", m.chunk == 0 ? "none" : text(m.chunk)},
      {"mask", bitmap == nullptr ? "none" : "one with hash " + hexadecimal(bitmap->hash())},
      {"layout", name(o.layout)},
      {"softmax_scale", number(plan.scale())},
      {"logits_soft_cap", o.logits_soft_cap ? number(plan.soft_cap()) : "none"},
      {"segment ids given", yes(o.segment_ids)},
      {"positions given", yes(o.explicit_positions)},
      {"fused_backward", yes(o.fused_backward)},
      {"deterministic", yes(o.deterministic)},
      {"forward q_blocksize", text(tile(Pass::kForward).queries)},
      {"forward kv_blocksize", text(tile(Pass::kForward).keys)},
      {"backward q_blocksize", text(tile(Pass::kBackward).queries)},
      {"backward kv_blocksize", text(tile(Pass::kBackward).keys)},
  };
}

using Record = std::array<char, kRecordBytes>;

/// "name=value" lines.
Record write(const Fields& fields) {
  std::string text;
  for (const auto& [name, value] : fields) text.append(name).append("=").append(value).append("\n");
  if (text.size() >= kRecordBytes) {
    throw Error(ErrorCode::kInternal,
                "options: " + std::to_string(text.size()) + " bytes do not fit one record");
  }
  Record record{};
  std::copy(text.begin(), text.end(), record.begin());
  return record;
}

/// Safe for whatever another version may have written.
Fields read(const Record& record) {
  const std::string_view text(record.data(),
                              std::find(record.begin(), record.end(), '\0') - record.begin());
  Fields fields;
  for (std::size_t at = 0; at < text.size();) {
    const std::string_view line = text.substr(at, text.find('\n', at) - at);
    at += line.size() + 1;
    const std::size_t sign = std::min(line.find('='), line.size());
    fields.emplace_back(line.substr(0, sign), line.substr(std::min(sign + 1, line.size())));
  }
  return fields;
}

}  // namespace

void compare_plans(Communicator& ring, const Plan& plan, std::string_view version) {
  if (ring.size() == 1) return;
  std::vector<Record> table(static_cast<std::size_t>(ring.size()));
  table[static_cast<std::size_t>(ring.rank())] = write(fields(plan, version));
  gather(ring, host_memory(), std::as_writable_bytes(std::span(table)), kRecordBytes, {});
  const Fields first = read(table[0]);
  for (std::size_t r = 1; r < table.size(); ++r) {
    const Fields other = read(table[r]);
    for (std::size_t f = 0; f < std::max(first.size(), other.size()); ++f) {
      const auto a =
          f < first.size() ? first[f] : std::pair(other[f].first, std::string("nothing"));
      const auto b = f < other.size() ? other[f] : std::pair(a.first, std::string("nothing"));
      if (a == b) continue;
      throw Error(ErrorCode::kCommunication, a.first + ": expected the same on every rank, got " +
                                                 a.second + " on rank 0 and " + b.second +
                                                 " on rank " + std::to_string(r));
    }
  }
}

}  // namespace ringattn
