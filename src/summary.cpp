// SPDX-License-Identifier: Apache-2.0
#include "summary.h"

#include <cstring>

namespace ringattn {
namespace {

SegmentBounds read_bounds(const std::byte* record, std::int64_t index) {
  SegmentBounds bounds;
  std::memcpy(&bounds, record + sizeof(Summary) + static_cast<std::size_t>(index) * sizeof bounds,
              sizeof bounds);
  return bounds;
}

}  // namespace

std::size_t summary_bytes(const Problem& problem) {
  return sizeof(Summary) + static_cast<std::size_t>(2 * problem.batch) * sizeof(SegmentBounds);
}

void summarise(std::int64_t batch, std::int64_t queries, std::int64_t keys,
               const std::int32_t* query_ids, const std::int32_t* key_ids,
               const std::int64_t* query_positions, const std::int64_t* key_positions,
               std::byte* out) {
  Summary summary;
  if (query_positions != nullptr) summary.query_span = span_of(query_positions, queries);
  if (key_positions != nullptr) summary.key_span = span_of(key_positions, keys);
  std::memcpy(out, &summary, sizeof summary);
  if (query_ids == nullptr) return;
  for (std::int64_t b = 0; b < batch; ++b) {
    const SegmentBounds q = bounds_of(query_ids + b * queries, queries);
    const SegmentBounds k = bounds_of(key_ids + b * keys, keys);
    std::memcpy(out + sizeof summary + static_cast<std::size_t>(b) * sizeof q, &q, sizeof q);
    std::memcpy(out + sizeof summary + static_cast<std::size_t>(batch + b) * sizeof k, &k,
                sizeof k);
  }
}

void apply_summaries(const Plan& plan, const std::byte* table, std::size_t stride,
                     LiveMatrix& live) {
  const std::int64_t batch = plan.problem().batch;
  for (int q = 0; q < plan.world(); ++q) {
    for (int k = 0; k < plan.world(); ++k) {
      if (!live.at(q, k)) continue;
      const std::byte* q_record = table + static_cast<std::size_t>(q) * stride;
      const std::byte* k_record = table + static_cast<std::size_t>(k) * stride;
      bool any = true;
      if (plan.options().explicit_positions) {
        Summary qs;
        Summary ks;
        std::memcpy(&qs, q_record, sizeof qs);
        std::memcpy(&ks, k_record, sizeof ks);
        any = classify(plan.mask().interval, qs.query_span, ks.key_span) != TileKind::kSkip;
      }
      if (any && plan.options().segment_ids) {
        any = false;
        for (std::int64_t b = 0; b < batch && !any; ++b) {
          any = classify(read_bounds(q_record, b), read_bounds(k_record, batch + b)) !=
                TileKind::kSkip;
        }
      }
      live.set(q, k, any);
    }
  }
}

}  // namespace ringattn
