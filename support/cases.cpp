// SPDX-License-Identifier: Apache-2.0
#include "support/cases.h"

#include <array>
#include <charconv>
#include <cmath>
#include <set>
#include <vector>

#include "ringattn/error.h"

namespace ringattn::support {
namespace {

// Bounds of what a string may ask for: products of four of them stay far below 2^63 only where
// data.cpp checks them, but each alone is harmless in any sum.
constexpr std::int64_t kMaxExtent = std::int64_t{1} << 40;
constexpr std::int64_t kMaxRing = 4096;  // threads of one process
constexpr std::size_t kMaxLength = 4096;

[[noreturn]] void refuse(std::string_view text, std::string_view field, const std::string& why) {
  constexpr std::size_t kShown = 80;
  const auto shown = [](std::string_view s) {
    return std::string(s.substr(0, kShown)) + (s.size() > kShown ? "..." : "");
  };
  throw Error(ErrorCode::kInvalidArgument,
              "case '" + shown(text) + "': field '" + shown(field) + "': " + why);
}

/// All of `text` as a number within [low, high].
bool read_integer(std::string_view text, std::int64_t low, std::int64_t high, std::int64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && low <= value &&
         value <= high && text.front() != '-';
}

bool read_float(std::string_view text, float& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && std::isfinite(value);
}

bool read_side(std::string_view text, Case::Side& side) {
  if (text == "none") {
    side = std::nullopt;
    return true;
  }
  std::int64_t value = 0;
  if (!read_integer(text, 0, INT64_MAX, value)) return false;
  side = value;
  return true;
}

bool read_window(std::string_view text, Case& c) {
  Case::Side left, right;
  const std::size_t comma = text.find(',');
  if (!read_side(text.substr(0, comma), left)) return false;
  right = left;
  if (comma != std::string_view::npos && !read_side(text.substr(comma + 1), right)) return false;
  c.window = {left, right};
  return true;
}

bool read_heads(std::string_view text, Case& c) {
  const std::size_t cross = text.find('x');
  if (!read_integer(text.substr(0, cross), 0, kMaxExtent, c.query_heads)) return false;
  c.kv_heads = c.query_heads;
  return cross == std::string_view::npos ||
         read_integer(text.substr(cross + 1), 0, kMaxExtent, c.kv_heads);
}

bool read_sinks(std::string_view text, Case& c) {
  c.sinks = text.empty() ? SinkForm::kPerHead : SinkForm::kShared;
  if (text.empty()) return true;
  if (text.starts_with("hx")) {
    c.sinks = SinkForm::kManyPerHead;
    text.remove_prefix(2);
  }
  return read_integer(text, 0, kMaxExtent, c.sink_count);
}

/// Fields that are words: what they set.
struct Word {
  std::string_view name;
  void (*set)(Case&);
};

constexpr Word kWords[] = {
    {"f32", [](Case& c) { c.dtype = DType::kFloat32; }},
    {"bf16", [](Case& c) { c.dtype = DType::kBFloat16; }},
    {"f16", [](Case& c) { c.dtype = DType::kFloat16; }},
    {"causal", [](Case& c) { c.causal = true; }},
    {"mask", [](Case& c) { c.mask = MaskForm::kDense; }},
    {"maskh", [](Case& c) { c.mask = MaskForm::kDensePerHead; }},
    {"seg", [](Case& c) { c.segments = SegmentForm::kBoth; }},
    {"segq", [](Case& c) { c.segments = SegmentForm::kQueryOnly; }},
    {"segkv", [](Case& c) { c.segments = SegmentForm::kKeyOnly; }},
    {"segpad", [](Case& c) { c.segments = SegmentForm::kPaddedRow; }},
    {"pos", [](Case& c) { c.positions = PositionForm::kNear; }},
    {"posfar", [](Case& c) { c.positions = PositionForm::kFar; }},
    {"infsink", [](Case& c) { c.infinite_sinks = true; }},
    {"peaked", [](Case& c) { c.data = DataForm::kPeaked; }},
    {"hostile", [](Case& c) { c.data = DataForm::kHostile; }},
    {"bwd", [](Case& c) { c.backward = true; }},
    {"dlse", [](Case& c) { c.dlse = true; }},
    {"fused", [](Case& c) { c.fused = true; }},
    {"det", [](Case& c) { c.deterministic = true; }},
    {"contiguous", [](Case& c) { c.layout = Layout::kContiguous; }},
    {"zigzag", [](Case& c) { c.layout = Layout::kZigzag; }},
    {"striped", [](Case& c) { c.layout = Layout::kStriped; }},
};

/// Words that exclude each other count as one field.
std::string_view group_of(std::string_view word) {
  if (word == "bf16" || word == "f16") return "f32";
  if (word == "maskh") return "mask";
  if (word.starts_with("seg")) return "seg";
  if (word == "posfar") return "pos";
  if (word == "hostile") return "peaked";
  if (word == "zigzag" || word == "striped") return "contiguous";
  return word;
}

/// Fields that are a name and a value, longer names before their prefixes.
struct Valued {
  std::string_view name;
  bool (*set)(Case&, std::string_view);
};

template <auto Member, std::int64_t kHigh = kMaxExtent>
bool set_integer(Case& c, std::string_view text) {
  return read_integer(text, 0, kHigh, c.*Member);
}

bool set_seed(Case& c, std::string_view text) {
  std::int64_t value = 0;
  if (!read_integer(text, 0, INT64_MAX, value)) return false;
  c.seed = static_cast<std::uint64_t>(value);
  return true;
}

bool set_ring(Case& c, std::string_view text) {
  std::int64_t value = 0;
  if (!read_integer(text, 0, kMaxRing, value)) return false;
  c.ring = static_cast<int>(value);
  return true;
}

template <auto Member>
bool set_float(Case& c, std::string_view text) {
  float value = 0.0F;
  if (!read_float(text, value)) return false;
  c.*Member = value;
  return true;
}

bool set_chunk(Case& c, std::string_view text) {
  std::int64_t value = 0;
  if (!read_integer(text, 0, INT64_MAX, value)) return false;
  c.chunk = value;
  return true;
}

constexpr Valued kValued[] = {
    {"scale", &set_float<&Case::scale>},
    {"seed", &set_seed},
    {"sink", [](Case& c, std::string_view t) { return read_sinks(t, c); }},
    {"chunk", &set_chunk},
    {"cap", &set_float<&Case::soft_cap>},
    {"qb", &set_integer<&Case::q_block>},
    {"kvb", &set_integer<&Case::kv_block>},
    {"sq", &set_integer<&Case::query_seq>},
    {"sk", &set_integer<&Case::key_seq>},
    {"dv", &set_integer<&Case::value_dim>},
    {"b", &set_integer<&Case::batch>},
    {"h", [](Case& c, std::string_view t) { return read_heads(t, c); }},
    {"d", &set_integer<&Case::head_dim>},
    {"w", [](Case& c, std::string_view t) { return read_window(t, c); }},
    {"r", &set_ring},
};

/// Reads one field; returns the name under which a second one would be a duplicate.
std::string_view read_field(std::string_view text, std::string_view field, Case& c) {
  for (const Word& word : kWords) {
    if (field == word.name) {
      word.set(c);
      return group_of(word.name);
    }
  }
  for (const Valued& valued : kValued) {
    if (!field.starts_with(valued.name)) continue;
    const std::string_view value = field.substr(valued.name.size());
    const bool may_be_empty = valued.name == "sink";
    if ((value.empty() && !may_be_empty) || !valued.set(c, value)) {
      refuse(text, field, "a value out of range, or none; see the case grammar");
    }
    return valued.name;
  }
  refuse(text, field, "unknown");
}

void check_together(std::string_view text, const Case& c) {
  if (c.infinite_sinks && c.sinks == SinkForm::kNone) {
    refuse(text, "infsink", "expected one of sink, sinkS, sinkhxS with it");
  }
  if (c.sinks == SinkForm::kShared && c.sink_count == c.query_heads) {
    refuse(text, "sink" + std::to_string(c.sink_count),
           "as many shared sinks as heads mean one per head: write sink");
  }
  if (c.dlse && !c.backward) refuse(text, "dlse", "expected bwd with it");
}

}  // namespace

Case parse_case(std::string_view text) {
  if (text.size() > kMaxLength) refuse(text, "", "longer than any case");
  Case c;
  std::set<std::string_view> seen;
  std::string_view rest = text;
  for (bool more = true; more;) {
    const std::size_t end = rest.find('_');
    const std::string_view field = rest.substr(0, end);
    if (field.empty()) refuse(text, field, "empty");
    if (!seen.insert(read_field(text, field, c)).second) {
      refuse(text, field, "given twice, or with one that excludes it");
    }
    more = end != std::string_view::npos;
    if (more) rest.remove_prefix(end + 1);
  }
  if (!seen.contains("sq")) refuse(text, "sq", "missing");
  if (!seen.contains("sk")) c.key_seq = c.query_seq;
  if (!seen.contains("dv")) c.value_dim = c.head_dim;
  check_together(text, c);
  return c;
}

bool looks_like_case(std::string_view text) {
  try {
    parse_case(text);
    return true;
  } catch (const Error&) {
    const bool path = text.find('/') != std::string_view::npos || text.ends_with(".safetensors");
    return !path && (text.starts_with("sq") || text.find("_sq") != std::string_view::npos);
  }
}

}  // namespace ringattn::support
