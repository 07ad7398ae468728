// SPDX-License-Identifier: Apache-2.0
// dQ of heads that are too wide for one kernel: a block keeps 128 queries and the gradients of
// their outputs, keys and values pass by. No two blocks add to the same sums, so every bit is the
// same from run to run. One block per multiprocessor, alive until there are no more rows.
#pragma once

#include "cuda/sm90/find_bits.cuh"
#include "cuda/sm90/padding.cuh"
#include "cuda/sm90/persistent.cuh"
#include "cuda/sm90/products.cuh"
#include "cuda/sm90/rows.cuh"
#include "cuda/sm90/softmax.cuh"
#include "cuda/sm90/split_layout.cuh"
#include "cuda/sm90/step_reader.cuh"

namespace ringattn::cuda::sm90 {

/// Copies queries and their gradients of every block of rows, keys and values of every step, into
/// shared memory.
template <int kDim>
RINGATTN_DEVICE void fetch_keys(std::uint32_t base,
                                const typename QueryGradientLayout<kDim>::Steps& steps, int group,
                                const CUtensorMap* query, const CUtensorMap* dout,
                                const CUtensorMap* key, const CUtensorMap* value) {
  using Layout = QueryGradientLayout<kDim>;
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };
  const auto load = [&](int to, const CUtensorMap* map, int full, int rows, int row, int head,
                        int batch) {
#pragma unroll 1
    for (int i = 0; i < Layout::kPanels; ++i) {
      ptx::load_box(base + to + i * rows * 128, map, barrier(full), 64 * i, row, head, batch);
    }
  };
  typename Layout::Steps::Ring ring;
  Place<Layout::kStages> stage;
  Place<1> value_stage;
  int query_parity = 1;
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
    if ((e.info & kFirst) != 0) {
      ptx::wait_asleep(barrier(Layout::kQueryEmpty), query_parity);
      query_parity ^= 1;
      ptx::arrive_expecting(barrier(Layout::kQueryFull), 2 * Layout::kQueryBytes);
      load(Layout::kQuery, query, Layout::kQueryFull, Layout::kRows, e.own_row, head, batch);
      load(Layout::kDout, dout, Layout::kQueryFull, Layout::kRows, e.own_row, head, batch);
    }
#pragma unroll 1
    for (int step = 0; step < e.info >> kStepsShift; ++step) {
      const int row = e.other_row - step * Layout::kColumns;
      ptx::wait_asleep(barrier(Layout::kKeyEmpty + stage.at), stage.parity ^ 1);
      ptx::arrive_expecting(barrier(Layout::kKeyFull + stage.at), Layout::kTileBytes);
      load(Layout::kKeys + stage.at * Layout::kTileBytes, key, Layout::kKeyFull + stage.at,
           Layout::kColumns, row, head / group, batch);
      stage.advance();
      say_asked(steps, asked, e.info);
      ptx::wait_asleep(barrier(Layout::kValueEmpty), value_stage.parity ^ 1);
      ptx::arrive_expecting(barrier(Layout::kValueFull), Layout::kTileBytes);
      load(Layout::kValues, value, Layout::kValueFull, Layout::kColumns, row, head / group, batch);
      value_stage.advance();
    }
  }
}

/// The query rows of a thread: `row` and row + 8 of the shard.
template <class T, int kDim>
struct QueryRows {
  const BackwardParameters<T>& p;
  int batch, head, row, valid;  // valid: of the group's rows, how many lie at or after `row`
  int tile;                     // of the group's rows

  struct Statistics {
    float lse[2], delta[2];  // lse in log2 units
  };
  RINGATTN_DEVICE Statistics statistics() const {
    Statistics s;
    const std::int64_t at =
        (static_cast<std::int64_t>(batch) * p.heads + head) * (p.own_counts[0] + p.own_counts[1]) +
        row;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool exists = valid > 8 * r;
      s.lse[r] = exists ? p.lse[at + 8 * r] * 1.4426950408889634F : kInfinity<float>;
      s.delta[r] = exists ? p.delta[at + 8 * r] : 0.0F;
    }
    return s;
  }

  /// Where sums between steps lie: as QueryTiles says.
  RINGATTN_DEVICE float4* sums() const {
    return reinterpret_cast<float4*>(p.dquery_sum +
                                     static_cast<std::int64_t>(tile) * (kGroupRows * kDim)) +
           threadIdx.x % 128;
  }
  RINGATTN_DEVICE void load(float (&acc)[kDim / 2], bool exists) const {
    const bool have = !p.first && exists;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      float4 x = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
      if (have) x = __ldcs(sums() + i * 128);
      acc[4 * i] = x.x;
      acc[4 * i + 1] = x.y;
      acc[4 * i + 2] = x.z;
      acc[4 * i + 3] = x.w;
    }
  }
  /// Between steps: the sums. After the last: times the scale, rounded once.
  RINGATTN_DEVICE void store(const float (&acc)[kDim / 2], bool exists) const {
    if (!exists) return;
    if (!p.last) {
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        __stcs(sums() + i * 128,
               make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]));
      }
      return;
    }
    if (p.dquery.data != nullptr) {
      store_rows<T, kDim>(p.dquery.at(batch, row, head), p.dquery.seq, valid, p.head_dim,
                          [&](int i) { return p.scale * acc[i]; });
      return;
    }
    float* to = p.dquery32.at(batch, row, head) + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) {
      const int column = i / 4 * 8 + i % 2;
      const int down = i % 4 / 2 * 8;
      if (valid > down && column + 2 * static_cast<int>(threadIdx.x % 4) < p.head_dim) {
        to[down * p.dquery32.seq + column] = p.scale * acc[i];
      }
    }
  }
};

/// What a warpgroup computes: all steps of all its rows.
template <class T, int kDim, bool kCap>
RINGATTN_DEVICE void gather_dquery(const BackwardParameters<T>& p, std::uint32_t base,
                                   const typename QueryGradientLayout<kDim>::Steps& steps,
                                   int group) {
  using Layout = QueryGradientLayout<kDim>;
  const int lane = threadIdx.x % 32;
  const int own_row = group * kGroupRows + threadIdx.x % 128 / 32 * 16 + lane / 4;
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };
  const auto leave = [&](int i) {
    if (lane == 0) ptx::arrive(barrier(i));
  };
  const std::uint64_t query_rows =
      ptx::descriptor(base + Layout::kQuery + group * kGroupRows * 128, 16);
  const std::uint64_t dout_rows =
      ptx::descriptor(base + Layout::kDout + group * kGroupRows * 128, 16);
  const std::uint64_t key_rows = ptx::descriptor(base + Layout::kKeys, 16);
  const std::uint64_t key_columns = ptx::descriptor(base + Layout::kKeys, Layout::kColumns * 128);
  const std::uint64_t value_rows = ptx::descriptor(base + Layout::kValues, 16);

  StepReader<Layout> reader(steps);
  Place<Layout::kStages> stage;
  unsigned value_parity = 0;
  unsigned query_parity = 0;

  float acc[kDim / 2];
  float a[32];          // scores, then weights
  float b[32];          // gradients of weights, then of scores
  std::uint32_t w[16];  // those, packed
  typename QueryRows<T, kDim>::Statistics own;

  const auto mine_of = [&](const StepEntry& e) {
    const int batch = e.head_batch >> 16;
    const int head = e.head_batch & 0xFFFF;
    const int first = e.own_row + group * kGroupRows;
    return QueryRows<T, kDim>{p,
                              batch,
                              head,
                              e.own_row + own_row,
                              (e.info >> kRowsShift & 0xFF) - own_row,
                              query_tile<T, kGroupRows>(p, p.own_counts[0], first, e.head_batch)};
  };
  const auto exists = [&](const StepEntry& e) {
    return (e.info >> kRowsShift & 0xFF) > group * kGroupRows;
  };
  const auto stage_offset = [&] { return (stage.at * Layout::kTileBytes) >> 4; };
  const auto issue_scores = [&]() __attribute__((always_inline)) {
    ptx::wait(barrier(Layout::kKeyFull + stage.at), stage.parity);
    ptx::wgmma_fence();
    multiply_rows<T, kDim, Layout::kColumns, Layout::kRows>(a, query_rows,
                                                            key_rows + stage_offset());
    ptx::wgmma_commit();
  };
  const auto issue_dweights = [&]() __attribute__((always_inline)) {
    ptx::wait(barrier(Layout::kValueFull), value_parity);
    value_parity ^= 1;
    ptx::wgmma_fence();
    multiply_rows<T, kDim, Layout::kColumns, Layout::kRows>(b, dout_rows, value_rows);
    ptx::wgmma_commit();
  };
  const auto issue_sum = [&]() __attribute__((always_inline)) {
    ptx::wgmma_fence();
    gather<T, kDim, Layout::kColumns>(acc, w, key_columns + stage_offset());
    ptx::wgmma_commit();
  };
  // When the scores are there, while gradients of weights are under way: to weights, with a cap
  // times its slope.
  const auto exponentiate = [&]() __attribute__((always_inline)) {
    ptx::wgmma_wait<1>();
    ptx::pin(a);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const float lse = own.lse[i % 4 / 2];
      if constexpr (kCap) {
        const float t = unit_cap<T>(a[i], p.score_scale);
        a[i] = ptx::power_of_two(fmaf(t, p.log2_cap, -lse)) * fmaf(-t, t, 1.0F);
      } else {
        a[i] = ptx::power_of_two(fmaf(a[i], p.score_scale, -lse));
      }
    }
  };
  // Then to gradients of scores, packed.
  const auto differentiate = [&]() __attribute__((always_inline)) {
    ptx::wgmma_wait<0>();
    ptx::pin(b);
    leave(Layout::kValueEmpty);
#pragma unroll
    for (int i = 0; i < 32; ++i) b[i] = a[i] * (b[i] - own.delta[i % 4 / 2]);
#pragma unroll
    for (int n = 0; n < 16; ++n) w[n] = ptx::pack<T>(b[2 * n], b[2 * n + 1]);
    reader.hide(group, own_row,
                [&](uint4 low, uint4 high) { hide_packed(w, part_of(low, 0), part_of(high, 0)); });
  };

  StepEntry now = reader.open();
  while ((now.info & kEnd) == 0) {
    own = mine_of(now).statistics();
    mine_of(now).load(acc, exists(now));
    if ((now.info & kHasOthers) != 0) {
      ptx::wait(barrier(Layout::kQueryFull), query_parity);
      query_parity ^= 1;
      reader.left -= 2;
      issue_scores();
      issue_dweights();
      exponentiate();
      differentiate();
      while (reader.left != 0) {
        issue_sum();
        const int leaving = Layout::kKeyEmpty + stage.at;
        stage.advance();
        issue_scores();
        issue_dweights();
        reader.next();
        ptx::wgmma_wait<2>();
        ptx::pin(w);
        leave(leaving);
        exponentiate();
        differentiate();
      }
      issue_sum();
      ptx::wgmma_wait<0>();
      ptx::pin(w);
      ptx::pin(acc);
      leave(Layout::kKeyEmpty + stage.at);
      leave(Layout::kQueryEmpty);
      stage.advance();
    }
    const StepEntry done = now;
    now = reader.open();
    mine_of(done).store(acc, exists(done));
  }
}

template <class T, int kDim, bool kCap>
__global__ void __launch_bounds__(QueryGradientLayout<kDim>::kThreads, 1)
    query_gradient_kernel(const __grid_constant__ BackwardParameters<T> p,
                          const __grid_constant__ CUtensorMap query,
                          const __grid_constant__ CUtensorMap dout,
                          const __grid_constant__ CUtensorMap key,
                          const __grid_constant__ CUtensorMap value) {
  using Layout = QueryGradientLayout<kDim>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  const auto steps = steps_at<Layout>(base);
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };

  if (threadIdx.x == 0) {
    if ((base & 1023) != 0) __trap();  // swizzled tiles need it
    steps.init_barriers(Layout::kGroups, 1);
    ptx::barrier_init(barrier(Layout::kQueryFull), 1);
    ptx::barrier_init(barrier(Layout::kQueryEmpty), 4 * Layout::kGroups);
    for (int i = 0; i < Layout::kStages; ++i) {
      ptx::barrier_init(barrier(Layout::kKeyFull + i), 1);
      ptx::barrier_init(barrier(Layout::kKeyEmpty + i), 4 * Layout::kGroups);
    }
    ptx::barrier_init(barrier(Layout::kValueFull), 1);
    ptx::barrier_init(barrier(Layout::kValueEmpty), 4 * Layout::kGroups);
    ptx::fence_barrier_init();
    ptx::prefetch_map(&query);
    ptx::prefetch_map(&dout);
    ptx::prefetch_map(&key);
    ptx::prefetch_map(&value);
  }
  __syncthreads();

  const int group = ptx::uniform(static_cast<int>(threadIdx.x / 128));
  if (group == 0) {
    ptx::release_registers<24>();
    const int warp = threadIdx.x / 32;
    if (warp == 0) {
      if (threadIdx.x == 0) fetch_keys<kDim>(base, steps, p.group, &query, &dout, &key, &value);
    } else if (warp == 1) {
      produce_steps<true, Layout::kRowGroups, Layout::kColumns, true>(p, steps);
    } else {
      const int thread = threadIdx.x - 64;
      find_bits<true, Layout::kRowGroups>(
          p, steps, thread, [&](const BitsRequest& r, const auto& until_asked) {
            if (!others_padded<Layout::kColumns>(r)) return;
            until_asked();
            const StepStage<Layout::kStages> stage(r.step_number);
            ptx::wait(barrier(Layout::kKeyFull + stage.at), stage.parity);
            clear_padding<Layout::kPanels, Layout::kColumns>(
                base + Layout::kKeys + stage.at * Layout::kTileBytes, p.schedule.key_segments,
                r.head_batch >> 16, p.schedule.keys.positions.size(), r.other_row, r.columns,
                thread);
          });
    }
  } else {
    ptx::request_registers<240>();
    gather_dquery<T, kDim, kCap>(p, base, steps, group - 1);
  }
}

template <class T, int kDim, bool kCap>
cudaError_t launch_query_gradient(const BackwardParameters<T>& p, const CUtensorMap& query,
                                  const CUtensorMap& dout, const CUtensorMap& key,
                                  const CUtensorMap& value, cudaStream_t stream) {
  using Layout = QueryGradientLayout<kDim>;
  return launch_persistent<query_gradient_kernel<T, kDim, kCap>, Layout::kThreads, Layout::kBytes>(
      p.tiles, stream, p, query, dout, key, value);
}

}  // namespace ringattn::cuda::sm90
