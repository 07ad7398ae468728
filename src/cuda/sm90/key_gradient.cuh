// SPDX-License-Identifier: Apache-2.0
// dK and dV of heads that are too wide for one kernel: a block keeps 64 keys and their values, the
// queries that see them, with the gradients of their outputs, pass by. Scores are held transposed:
// rows are keys. The two warpgroups do the same with other operands: one gathers dV = P' dO, the
// other dK = dS' Q. One block per multiprocessor, alive until there are no more keys.
#pragma once

#include "cuda/sm90/find_bits.cuh"
#include "cuda/sm90/gradient_rows.cuh"
#include "cuda/sm90/padding.cuh"
#include "cuda/sm90/persistent.cuh"
#include "cuda/sm90/products.cuh"
#include "cuda/sm90/softmax.cuh"
#include "cuda/sm90/split_layout.cuh"
#include "cuda/sm90/step_reader.cuh"

namespace ringattn::cuda::sm90 {

/// Copies keys and values of every block of own rows, and queries, gradients and statistics of
/// every step, into shared memory.
template <class T, int kDim>
RINGATTN_DEVICE void fetch_queries(const BackwardParameters<T>& p, std::uint32_t base,
                                   const typename KeyGradientLayout<kDim>::Steps& steps,
                                   const CUtensorMap* query, const CUtensorMap* dout,
                                   const CUtensorMap* key, const CUtensorMap* value) {
  using Layout = KeyGradientLayout<kDim>;
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };
  const auto load = [&](int to, const CUtensorMap* map, int full, int row, int head, int batch) {
#pragma unroll 1
    for (int i = 0; i < Layout::kPanels; ++i) {
      ptx::load_box(base + to + i * 64 * 128, map, barrier(full), 64 * i, row, head, batch);
    }
  };
  static_assert(Layout::kRows == 64 && Layout::kQueries == 64);
  typename Layout::Steps::Ring ring;
  Place<Layout::kStages> stage;
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
    if ((e.info & kFirst) != 0) {
      ptx::wait_asleep(barrier(Layout::kKeyEmpty), own_parity);
      own_parity ^= 1;
      ptx::arrive_expecting(barrier(Layout::kKeyFull), 2 * Layout::kKeyBytes);
      load(Layout::kKey, key, Layout::kKeyFull, e.own_row, head / p.group, batch);
      load(Layout::kValue, value, Layout::kKeyFull, e.own_row, head / p.group, batch);
    }
    const int tile =
        query_tile<T, Layout::kQueries>(p, p.other_counts[0], e.other_row, e.head_batch);
#pragma unroll 1
    for (int step = 0; step < e.info >> kStepsShift; ++step) {
      const int row = e.other_row + step * Layout::kQueries;
      const int full = Layout::kQueryFull + stage.at;
      ptx::wait_asleep(barrier(Layout::kQueryEmpty + stage.at), stage.parity ^ 1);
      ptx::arrive_expecting(barrier(full), 2 * Layout::kQueryBytes + Layout::kStatisticsBytes);
      load(Layout::kQuery + stage.at * Layout::kQueryBytes, query, full, row, head, batch);
      load(Layout::kDout + stage.at * Layout::kQueryBytes, dout, full, row, head, batch);
      ptx::load_bytes(
          base + Layout::kStatistics + stage.at * Layout::kStatisticsBytes,
          p.statistics + static_cast<std::int64_t>(tile + step) * (2 * Layout::kQueries),
          Layout::kStatisticsBytes, barrier(full));
      stage.advance();
    }
    say_asked(steps, asked, e.info);
  }
}

/// Clears the padding of a masked step: of its queries and their gradients.
template <class T, int kDim, class UntilAsked>
RINGATTN_DEVICE void clear_queries(const BackwardParameters<T>& p, std::uint32_t base,
                                   const BitsRequest& r, const UntilAsked& until_asked,
                                   int thread) {
  using Layout = KeyGradientLayout<kDim>;
  if (!others_padded<Layout::kQueries>(r)) return;
  until_asked();
  const StepStage<Layout::kStages> stage(r.step_number);
  ptx::wait_asleep(base + Layout::kBarriers + 8 * (Layout::kQueryFull + stage.at), stage.parity);
  for (int to : {Layout::kQuery, Layout::kDout}) {
    clear_padding<Layout::kPanels, Layout::kQueries>(
        base + to + stage.at * Layout::kQueryBytes, p.schedule.query_segments, r.head_batch >> 16,
        p.schedule.queries.positions.size(), r.other_row, r.columns, thread);
  }
}

/// What a warpgroup computes: all steps of all its rows. kKeys: dK, else dV.
template <class T, int kDim, bool kCap, bool kKeys>
RINGATTN_DEVICE void gather_keys(const BackwardParameters<T>& p, std::uint32_t base,
                                 const typename KeyGradientLayout<kDim>::Steps& steps) {
  using Layout = KeyGradientLayout<kDim>;
  const int lane = threadIdx.x % 32;
  const int own_row = threadIdx.x % 128 / 32 * 16 + lane / 4;
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };
  const auto leave = [&](int i) {
    if (lane == 0) ptx::arrive(barrier(i));
  };
  // A tile is K Q' for one, V dO' for the other; what is made of it gathers dO and Q.
  const std::uint64_t own_rows =
      ptx::descriptor(base + (kKeys ? Layout::kValue : Layout::kKey), 16);
  const std::uint64_t other_rows =
      ptx::descriptor(base + (kKeys ? Layout::kDout : Layout::kQuery), 16);
  const std::uint64_t other_columns =
      ptx::descriptor(base + (kKeys ? Layout::kQuery : Layout::kDout), Layout::kQueries * 128);
  const std::uint32_t weights = base + Layout::kWeights + threadIdx.x % 128 * 16;

  StepReader<Layout> reader(steps);
  Place<Layout::kStages> stage;
  unsigned weights_parity = 0;
  unsigned own_parity = 0;

  float sum[kDim / 2];
  float a[32];          // the tile
  std::uint32_t w[16];  // what is made of it, packed
  const auto stage_offset = [&] { return (stage.at * Layout::kQueryBytes) >> 4; };
  const auto issue_tile = [&]() __attribute__((always_inline)) {
    ptx::wait(barrier(Layout::kQueryFull + stage.at), stage.parity);
    ptx::wgmma_fence();
    multiply_rows<T, kDim, Layout::kQueries, Layout::kRows>(a, own_rows,
                                                            other_rows + stage_offset());
    ptx::wgmma_commit();
  };
  const auto issue_sum = [&]() __attribute__((always_inline)) {
    ptx::wgmma_fence();
    gather<T, kDim, Layout::kQueries>(sum, w, other_columns + stage_offset());
    ptx::wgmma_commit();
  };
  // lse or delta of this thread's columns.
  const auto load_statistics = [&](float(&x)[16]) __attribute__((always_inline)) {
    const std::uint32_t from = base + Layout::kStatistics + stage.at * Layout::kStatisticsBytes +
                               lane % 4 * 16 + (kKeys ? Layout::kQueries * 4 : 0);
#pragma unroll
    for (int n = 0; n < 4; ++n) ptx::load_shared(x + 4 * n, from + n * 64);
  };
  const auto column = [](int i) { return i / 4 * 2 + i % 2; };
  // Scores to weights, which the other group takes, with a cap times its slope.
  const auto exponentiate = [&](const float(&lse)[16]) __attribute__((always_inline)) {
    ptx::wait(barrier(Layout::kWeightsEmpty), weights_parity ^ 1);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      float slope[4] = {1.0F, 1.0F, 1.0F, 1.0F};
#pragma unroll
      for (int i = 4 * n; i < 4 * n + 4; ++i) {
        if constexpr (kCap) {
          const float t = unit_cap<T>(a[i], p.score_scale);
          slope[i % 4] = fmaf(-t, t, 1.0F);
          a[i] = ptx::power_of_two(fmaf(t, p.log2_cap, -lse[column(i)]));
        } else {
          a[i] = ptx::power_of_two(fmaf(a[i], p.score_scale, -lse[column(i)]));
        }
      }
      ptx::store_shared(weights + n * 2048, a[4 * n] * slope[0], a[4 * n + 1] * slope[1],
                        a[4 * n + 2] * slope[2], a[4 * n + 3] * slope[3]);
    }
    __syncwarp();
    leave(Layout::kWeightsFull);
  };
  // Gradients of weights to those of scores.
  const auto differentiate = [&](const float(&delta)[16]) __attribute__((always_inline)) {
    ptx::wait(barrier(Layout::kWeightsFull), weights_parity);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      float weight[4];
      ptx::load_shared(weight, weights + n * 2048);
#pragma unroll
      for (int i = 4 * n; i < 4 * n + 4; ++i) a[i] = weight[i % 4] * (a[i] - delta[column(i)]);
    }
    __syncwarp();
    leave(Layout::kWeightsEmpty);
  };
  const auto finish_tile = [&]() __attribute__((always_inline)) {
    ptx::wgmma_wait<0>();
    ptx::pin(a);
    float statistics[16];
    load_statistics(statistics);
    if constexpr (kKeys) {
      differentiate(statistics);
    } else {
      exponentiate(statistics);
    }
    weights_parity ^= 1;
#pragma unroll
    for (int n = 0; n < 16; ++n) w[n] = ptx::pack<T>(a[2 * n], a[2 * n + 1]);
    reader.hide(0, own_row,
                [&](uint4 low, uint4 high) { hide_packed(w, part_of(low, 0), part_of(high, 0)); });
  };

  StepEntry now = reader.open();
  while ((now.info & kEnd) == 0) {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) sum[i] = 0.0F;
    if ((now.info & kHasOthers) != 0) {
      ptx::wait(barrier(Layout::kKeyFull), own_parity);
      own_parity ^= 1;
      reader.left -= 2;
      issue_tile();
      finish_tile();
      while (reader.left != 0) {
        issue_sum();
        const int leaving = Layout::kQueryEmpty + stage.at;
        stage.advance();
        issue_tile();
        reader.next();
        ptx::wgmma_wait<1>();
        ptx::pin(w);
        leave(leaving);
        finish_tile();
      }
      issue_sum();
      ptx::wgmma_wait<0>();
      ptx::pin(w);
      ptx::pin(sum);
      leave(Layout::kQueryEmpty + stage.at);
      leave(Layout::kKeyEmpty);
      stage.advance();
    }
    const StepEntry done = now;
    now = reader.open();
    store_gradient<T, kDim>(sum, kKeys ? p.dkey_out : p.dvalue_out, kKeys ? p.dkey : p.dvalue, p,
                            kKeys ? p.head_dim : p.value_dim, done.head_batch >> 16,
                            (done.head_batch & 0xFFFF) / p.group, done.own_row + own_row,
                            (done.info >> kRowsShift & 0xFF) - own_row, kKeys ? p.scale : 1.0F);
  }
}

template <class T, int kDim, bool kCap>
__global__ void __launch_bounds__(KeyGradientLayout<kDim>::kThreads, 1)
    key_gradient_kernel(const __grid_constant__ BackwardParameters<T> p,
                        const __grid_constant__ CUtensorMap query,
                        const __grid_constant__ CUtensorMap dout,
                        const __grid_constant__ CUtensorMap key,
                        const __grid_constant__ CUtensorMap value) {
  using Layout = KeyGradientLayout<kDim>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  const auto steps = steps_at<Layout>(base);
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };

  if (threadIdx.x == 0) {
    if ((base & 1023) != 0) __trap();  // swizzled tiles need it
    steps.init_barriers(Layout::kGroups, 1);
    ptx::barrier_init(barrier(Layout::kKeyFull), 1);
    ptx::barrier_init(barrier(Layout::kKeyEmpty), 4 * Layout::kGroups);
    for (int i = 0; i < Layout::kStages; ++i) {
      ptx::barrier_init(barrier(Layout::kQueryFull + i), 1);
      ptx::barrier_init(barrier(Layout::kQueryEmpty + i), 4 * Layout::kGroups);
    }
    ptx::barrier_init(barrier(Layout::kWeightsFull), 4);
    ptx::barrier_init(barrier(Layout::kWeightsEmpty), 4);
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
      if (threadIdx.x == 0) fetch_queries<T, kDim>(p, base, steps, &query, &dout, &key, &value);
    } else if (warp == 1) {
      produce_steps<false, Layout::kRowGroups, Layout::kQueries, true>(p, steps);
    } else {
      const int thread = threadIdx.x - 64;
      find_bits<false, Layout::kRowGroups>(
          p, steps, thread, [&](const BitsRequest& r, const auto& until_asked) {
            clear_queries<T, kDim>(p, base, r, until_asked, thread);
          });
    }
  } else {
    ptx::request_registers<240>();
    if (group == 1) {
      gather_keys<T, kDim, kCap, false>(p, base, steps);
    } else {
      gather_keys<T, kDim, kCap, true>(p, base, steps);
    }
  }
}

template <class T, int kDim, bool kCap>
cudaError_t launch_key_gradient(const BackwardParameters<T>& p, const CUtensorMap& query,
                                const CUtensorMap& dout, const CUtensorMap& key,
                                const CUtensorMap& value, cudaStream_t stream) {
  using Layout = KeyGradientLayout<kDim>;
  return launch_persistent<key_gradient_kernel<T, kDim, kCap>, Layout::kThreads, Layout::kBytes>(
      p.tiles, stream, p, query, dout, key, value);
}

}  // namespace ringattn::cuda::sm90
