// SPDX-License-Identifier: Apache-2.0
// What comes into shared memory for the forward pass: the copies, and the clearing of padding among
// what they bring.
#pragma once

#include "cuda/sm90/find_bits.cuh"
#include "cuda/sm90/layout.cuh"
#include "cuda/sm90/padding.cuh"

namespace ringattn::cuda::sm90 {

/// Copies queries, keys and values of every step into shared memory, values a step behind.
template <int kDim>
RINGATTN_DEVICE void fetch(std::uint32_t base, const typename ForwardLayout<kDim>::Steps& steps,
                           int group, const CUtensorMap* query, const CUtensorMap* key,
                           const CUtensorMap* value) {
  using Layout = ForwardLayout<kDim>;
  constexpr int kColumns = Layout::kShape.columns;
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };
  typename Layout::Steps::Ring ring;
  Place<Layout::kShape.stages> keys;
  Place<Layout::kShape.stages> values;
  int query_parity = 1;
  int held_row = -1;
  int held_head_batch = 0;
  int held_info = 0;
  std::uint32_t asked = 0;
  const auto load_values = [&] {
    if (held_row < 0) return;  // the first step of these rows
    const std::uint32_t full = barrier(Layout::kValueFull + values.at);
    ptx::wait_asleep(barrier(Layout::kValueEmpty + values.at), values.parity ^ 1);
    ptx::arrive_expecting(full, Layout::kTileBytes);
    const std::uint32_t to = base + Layout::kValues + values.at * Layout::kTileBytes;
#pragma unroll 1
    for (int i = 0; i < Layout::kPanels; ++i) {
      ptx::load_box(to + i * kColumns * 128, value, full, 64 * i, held_row,
                    (held_head_batch & 0xFFFF) / group, held_head_batch >> 16);
    }
    values.advance();
    held_row = -1;
    say_asked(steps, asked, held_info);
  };
#pragma unroll 1
  for (;; ring.advance()) {
    ptx::wait_asleep(steps.full(ring.at), ring.parity);
    const StepEntry e = steps.entry(ring.at);
    ptx::arrive(steps.empty(ring.at));
    if ((e.info & kEnd) != 0) return;
    if ((e.info & kHasOthers) == 0) continue;
    const int head = e.head_batch & 0xFFFF;
    const int batch = e.head_batch >> 16;
    if ((e.info & kFirst) != 0) {
      ptx::wait_asleep(barrier(Layout::kQueryEmpty), query_parity);
      query_parity ^= 1;
      ptx::arrive_expecting(barrier(Layout::kQueryFull), Layout::kQueryBytes);
#pragma unroll 1
      for (int i = 0; i < Layout::kPanels; ++i) {
        ptx::load_box(base + i * Layout::kRows * 128, query, barrier(Layout::kQueryFull), 64 * i,
                      e.own_row, head, batch);
      }
    }
#pragma unroll 1
    for (int step = 0; step < e.info >> kStepsShift; ++step) {
      const int row = e.other_row - step * kColumns;
      const std::uint32_t full = barrier(Layout::kKeyFull + keys.at);
      ptx::wait_asleep(barrier(Layout::kKeyEmpty + keys.at), keys.parity ^ 1);
      ptx::arrive_expecting(full, Layout::kTileBytes);
      const std::uint32_t to = base + Layout::kKeys + keys.at * Layout::kTileBytes;
#pragma unroll 1
      for (int i = 0; i < Layout::kPanels; ++i) {
        ptx::load_box(to + i * kColumns * 128, key, full, 64 * i, row, head / group, batch);
      }
      keys.advance();
      load_values();
      held_row = row;
      held_head_batch = e.head_batch;
      held_info = e.info;
    }
    if ((e.info & kMore) == 0) load_values();
  }
}

/// Clears the padding of a masked step, of its values: what keys and queries hold only reaches
/// pairs that the bits hide.
template <int kDim, class P, class UntilAsked>
RINGATTN_DEVICE void clear_values(const P& p, std::uint32_t base, const BitsRequest& r,
                                  const UntilAsked& until_asked, int thread) {
  using Layout = ForwardLayout<kDim>;
  constexpr ForwardShape kShape = Layout::kShape;
  if (!others_padded<kShape.columns>(r)) return;
  until_asked();
  const StepStage<kShape.stages> stage(r.step_number);
  ptx::wait_asleep(base + Layout::kBarriers + 8 * (Layout::kValueFull + stage.at), stage.parity);
  clear_padding<Layout::kPanels, kShape.columns>(
      base + Layout::kValues + stage.at * Layout::kTileBytes, p.schedule.key_segments,
      r.head_batch >> 16, p.schedule.keys.positions.size(), r.other_row, r.columns, thread);
}

}  // namespace ringattn::cuda::sm90
