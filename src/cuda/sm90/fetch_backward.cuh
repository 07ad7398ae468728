// SPDX-License-Identifier: Apache-2.0
// What comes into shared memory for the backward pass: the copies, and the clearing of padding
// among what they bring.
#pragma once

#include "cuda/sm90/backward_layout.cuh"
#include "cuda/sm90/find_bits.cuh"
#include "cuda/sm90/padding.cuh"

namespace ringattn::cuda::sm90 {

/// Copies keys and values of every block of own rows, and queries, gradients and statistics of
/// every step, into shared memory.
template <class T, int kDim>
RINGATTN_DEVICE void fetch_backward(const BackwardParameters<T>& p, std::uint32_t base,
                                    const typename BackwardLayout<kDim>::Steps& steps,
                                    const CUtensorMap* query, const CUtensorMap* dout,
                                    const CUtensorMap* key, const CUtensorMap* value) {
  using Layout = BackwardLayout<kDim>;
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };
  typename Layout::Steps::Ring ring;
  Place<Layout::kShape.query_stages> query_stage;
  Place<Layout::kShape.dout_stages> dout_stage;
  int own_parity = 1;
  std::uint32_t asked = 0;
#pragma unroll 1
  for (;; ring.advance()) {
    ptx::wait_asleep(steps.full(ring.at), ring.parity);
    const StepEntry e = steps.entry(ring.at);
    ptx::arrive(steps.empty(ring.at));
    if ((e.info & kEnd) != 0) return;
    if ((e.info & kHasOthers) == 0) continue;
    const int head = e.head_batch & 0xFFFF;
    const int batch = e.head_batch >> 16;
    const int tile =
        query_tile<T, Layout::kQueries>(p, p.other_counts[0], e.other_row, e.head_batch);
#pragma unroll 1
    for (int step = 0; step < e.info >> kStepsShift; ++step) {
      const int row = e.other_row + step * Layout::kQueries;
      const auto load = [&](const CUtensorMap* from, int to, int full) {
#pragma unroll 1
        for (int i = 0; i < Layout::kPanels; ++i) {
          ptx::load_box(base + to + i * Layout::kQueries * 128, from, barrier(full), 64 * i, row,
                        head, batch);
        }
      };
      // Gradients first: they are wanted before the queries are.
      const int dout_full = Layout::kDoutFull + dout_stage.at;
      ptx::wait_asleep(barrier(Layout::kDoutEmpty + dout_stage.at), dout_stage.parity ^ 1);
      ptx::arrive_expecting(barrier(dout_full), Layout::kQueryBytes + Layout::kStatisticsBytes);
      load(dout, Layout::kDout + dout_stage.at * Layout::kQueryBytes, dout_full);
      ptx::load_bytes(
          base + Layout::kStatistics + dout_stage.at * Layout::kStatisticsBytes,
          p.statistics + static_cast<std::int64_t>(tile + step) * (2 * Layout::kQueries),
          Layout::kStatisticsBytes, barrier(dout_full));
      dout_stage.advance();
      const int query_full = Layout::kQueryFull + query_stage.at;
      ptx::wait_asleep(barrier(Layout::kQueryEmpty + query_stage.at), query_stage.parity ^ 1);
      ptx::arrive_expecting(barrier(query_full), Layout::kQueryBytes);
      load(query, Layout::kQuery + query_stage.at * Layout::kQueryBytes, query_full);
      query_stage.advance();
      if (step > 0 || (e.info & kFirst) == 0) continue;
      // Values first: those of the rows before are done with before their keys are.
      const auto load_own = [&](const CUtensorMap* from, int to, int full, int empty) {
        ptx::wait_asleep(barrier(empty), own_parity);
        ptx::arrive_expecting(barrier(full), Layout::kKeyBytes);
#pragma unroll 1
        for (int i = 0; i < Layout::kPanels; ++i) {
          ptx::load_box(base + to + i * Layout::kRows * 128, from, barrier(full), 64 * i, e.own_row,
                        head / p.group, batch);
        }
      };
      load_own(value, Layout::kValue, Layout::kValueFull, Layout::kValueEmpty);
      load_own(key, Layout::kKey, Layout::kKeyFull, Layout::kKeyEmpty);
      own_parity ^= 1;
    }
    say_asked(steps, asked, e.info);
  }
}

/// Clears the padding of a masked step: of its queries and their gradients, of its keys unless
/// those are the ones `cleared` last.
template <class T, int kDim, class UntilAsked>
RINGATTN_DEVICE void clear_step(const BackwardParameters<T>& p, std::uint32_t base,
                                const BitsRequest& r, const UntilAsked& until_asked, int thread,
                                int& cleared) {
  using Layout = BackwardLayout<kDim>;
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };
  const auto clear = [&]<int kRows>(std::uint32_t tile, const ShardSegments& segments,
                                    const Positions& positions, int row, int rows) {
    clear_padding<Layout::kPanels, kRows>(base + tile, segments, r.head_batch >> 16,
                                          positions.size(), row, rows, thread);
  };
  const bool padded = others_padded<Layout::kQueries>(r);
  if (!padded && cleared == r.own_number) return;
  until_asked();
  if (padded) {
    const auto clear_others = [&](const auto& stage, int full, int to) {
      ptx::wait_asleep(barrier(full + stage.at), stage.parity);
      clear.template operator()<Layout::kQueries>(
          to + stage.at * Layout::kQueryBytes, p.schedule.query_segments,
          p.schedule.queries.positions, r.other_row, r.columns);
    };
    clear_others(StepStage<Layout::kShape.query_stages>(r.step_number), Layout::kQueryFull,
                 Layout::kQuery);
    clear_others(StepStage<Layout::kShape.dout_stages>(r.step_number), Layout::kDoutFull,
                 Layout::kDout);
  }
  if (cleared == r.own_number) return;
  cleared = r.own_number;
  ptx::wait_asleep(barrier(Layout::kKeyFull), static_cast<unsigned>(r.own_number) & 1U);
  clear.template operator()<Layout::kRows>(Layout::kKey, p.schedule.key_segments,
                                           p.schedule.keys.positions, r.own_row, r.rows);
}

}  // namespace ringattn::cuda::sm90
