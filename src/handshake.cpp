// SPDX-License-Identifier: Apache-2.0
#include "handshake.h"

#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "backend.h"
#include "ring.h"
#include "ringattn/version.h"

namespace ringattn {
namespace {

struct Field {
  const char* name;
  std::int64_t value;
};

std::int64_t bits(float x) { return std::bit_cast<std::int32_t>(x); }

std::int64_t hash(std::string_view text) {  // FNV-1a
  std::uint64_t h = 0xCBF29CE484222325U;
  for (char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3U;
  return static_cast<std::int64_t>(h);
}

/// Everything that must agree. Floats as bits, texts as hashes: equality is all that counts.
std::vector<Field> fields(const Plan& plan) {
  const Problem& p = plan.problem();
  const Options& o = plan.options();
  const IntervalMask& m = plan.mask().interval;
  const BlockBitmap* bitmap = plan.mask().bitmap.get();
  return {
      {"ringattn version", hash(RINGATTN_VERSION)},
      {"batch", p.batch},
      {"query length", p.query_seq},
      {"key length", p.key_seq},
      {"query heads", p.query_heads},
      {"kv heads", p.kv_heads},
      {"head_dim", p.head_dim},
      {"value head_dim", p.value_dim},
      {"dtype", static_cast<std::int64_t>(p.dtype)},
      {"device", static_cast<std::int64_t>(p.device)},
      {"sliding_window left", m.left},
      {"sliding_window right, or causal", m.right},
      {"chunk_size", m.chunk},
      {"mask (hash)", bitmap == nullptr ? 0 : bitmap->hash()},
      {"layout", static_cast<std::int64_t>(o.layout)},
      {"softmax_scale (bits)", bits(plan.scale())},
      {"logits_soft_cap (bits)", bits(plan.soft_cap())},
      {"segment ids given", o.segment_ids ? 1 : 0},
      {"positions given", o.explicit_positions ? 1 : 0},
      {"fused_backward", o.fused_backward ? 1 : 0},
      {"deterministic", o.deterministic ? 1 : 0},
      {"forward q_blocksize", plan.tiles(Pass::kForward).queries},
      {"forward kv_blocksize", plan.tiles(Pass::kForward).keys},
      {"backward q_blocksize", plan.tiles(Pass::kBackward).queries},
      {"backward kv_blocksize", plan.tiles(Pass::kBackward).keys},
      {"backend (hash)", hash(plan.backend().name())},
  };
}

}  // namespace

void compare_plans(Communicator& ring, const Plan& plan) {
  if (ring.size() == 1) return;
  const std::vector<Field> own = fields(plan);
  const std::size_t bytes = own.size() * sizeof(std::int64_t);
  std::vector<std::int64_t> table(own.size() * static_cast<std::size_t>(ring.size()));
  const std::size_t at = own.size() * static_cast<std::size_t>(ring.rank());
  for (std::size_t f = 0; f < own.size(); ++f) table[at + f] = own[f].value;
  gather(ring, host_memory(), std::as_writable_bytes(std::span(table)), bytes, {});
  for (std::size_t r = 1; r < static_cast<std::size_t>(ring.size()); ++r) {
    for (std::size_t f = 0; f < own.size(); ++f) {
      const std::int64_t here = table[r * own.size() + f];
      if (here == table[f]) continue;
      throw Error(ErrorCode::kCommunication,
                  std::string(own[f].name) + ": expected the same on every rank, got " +
                      std::to_string(table[f]) + " on rank 0 and " + std::to_string(here) +
                      " on rank " + std::to_string(r));
    }
  }
}

}  // namespace ringattn
