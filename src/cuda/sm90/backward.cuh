// SPDX-License-Identifier: Apache-2.0
// The backward pass on Hopper (Dao et al. 2022, arXiv 2205.14135, algorithm 4, with the roles of
// FlashAttention-3, Shah et al. 2024, arXiv 2407.08608). A block keeps 128 keys and their values;
// the queries that see them, with the gradients of their outputs, pass by. Scores are held
// transposed: rows are keys. One block per multiprocessor, alive until there are no more keys.
#pragma once

#include "cuda/sm90/add_queries.cuh"
#include "cuda/sm90/backward_layout.cuh"
#include "cuda/sm90/fetch_backward.cuh"
#include "cuda/sm90/gradient_rows.cuh"
#include "cuda/sm90/persistent.cuh"
#include "cuda/sm90/products.cuh"
#include "cuda/sm90/softmax.cuh"
#include "cuda/sm90/step_reader.cuh"

namespace ringattn::cuda::sm90 {

/// What a warpgroup computes: all steps of all its rows.
template <class T, int kDim, bool kCap>
RINGATTN_DEVICE void compute_backward(const BackwardParameters<T>& p, std::uint32_t base,
                                      const typename BackwardLayout<kDim>::Steps& steps,
                                      int group) {
  using Layout = BackwardLayout<kDim>;
  constexpr int kQueries = Layout::kQueries;
  constexpr int kRows = Layout::kRows;
  constexpr bool kWide = kDim > 64;  // gradients of queries are shared by columns, else by rows
  constexpr int kParts = kQueries / 64;
  constexpr int kFours = kQueries / 16;  // of a thread's columns
  // Where 16 packed weights lie among 32 registers: kFour from one four of them to the next.
  // Gradients of scores lie kSecond behind. With 64 queries eight of each are packed into the
  // registers of eight as soon as they are known; with 128 that would take more of them.
  constexpr int kFour = kWide ? 8 : 4;
  constexpr int kSecond = kWide ? 4 : 16;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x % 128 / 32;
  const int own_row = group * kGroupRows + warp * 16 + lane / 4;
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };
  const std::uint64_t key_rows =
      ptx::descriptor(base + Layout::kKey + group * kGroupRows * 128, 16);
  const std::uint64_t value_rows =
      ptx::descriptor(base + Layout::kValue + group * kGroupRows * 128, 16);
  const std::uint64_t query_rows = ptx::descriptor(base + Layout::kQuery, 16);
  const std::uint64_t dout_rows = ptx::descriptor(base + Layout::kDout, 16);
  const std::uint64_t query_columns = ptx::descriptor(base + Layout::kQuery, kQueries * 128);
  const std::uint64_t dout_columns = ptx::descriptor(base + Layout::kDout, kQueries * 128);
  const std::uint64_t key_columns =
      ptx::descriptor(base + Layout::kKey + (kWide ? group * kRows * 128 : 0), kRows * 128);
  const std::uint64_t score_rows =
      ptx::descriptor(base + Layout::kScores + (kWide ? 0 : group * kGroupRows * 128), 16);
  // Where this thread's part of a transposed tile of scores goes.
  const std::uint32_t score_row = base + Layout::kScores + group * kQueries * 128 +
                                  (lane / 16 * 8 + lane % 8) * 128 +
                                  ((2 * warp + lane / 8 % 2) ^ lane % 8) * 16;

  StepReader<Layout> reader(steps);
  Place<Layout::kShape.query_stages> query;
  Place<Layout::kShape.dout_stages> dout;
  int own_parity = 0;
  Place<Layout::kShape.buffers> scores;  // of this step
  Place<Layout::kShape.buffers> ready;   // of the step before

  float dkey[kDim / 2];
  float dvalue[kDim / 2];
  // Tiles in parts of 64 queries. `a` holds scores, then weights, then both of the tiles that are
  // gathered, rounded and packed. `b` holds gradients of weights, then of scores, then those of
  // queries. Both stay where they are from step to step: that and the two sums is all that the
  // registers take.
  float a[kQueries / 2];
  float b[kQueries / 2];
  float statistics[16];
  const int zero = p.tiles < 0 ? 1 : 0;  // as nobody but us knows

  const auto stage_offset = [](int at) { return (at * Layout::kQueryBytes) >> 4; };
  // Own rows against the queries, or their gradients, of a stage.
  const auto issue_tile = [&](float(&to)[kQueries / 2], std::uint64_t own, std::uint64_t others)
      __attribute__((always_inline)) {
    ptx::wgmma_fence();
    multiply_rows_in_place<T, kDim, kQueries, kRows>(to, own, others, zero);
    ptx::wgmma_commit();
  };
  const auto issue_scores = [&]() __attribute__((always_inline)) {
    ptx::wait(barrier(Layout::kQueryFull + query.at), query.parity);
    issue_tile(a, key_rows, query_rows + stage_offset(query.at));
  };
  const auto issue_dweights = [&]() __attribute__((always_inline)) {
    ptx::wait(barrier(Layout::kDoutFull + dout.at), dout.parity);
    issue_tile(b, value_rows, dout_rows + stage_offset(dout.at));
  };
  // sum += what `a` has packed from `first` on, times the rows of this stage.
  const auto issue_sum = [&](float(&sum)[kDim / 2], int first, std::uint64_t columns)
      __attribute__((always_inline)) {
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      gather_packed<T, kDim, kFour>(sum, a + 32 * i + first, columns + i * 512);
    }
    ptx::wgmma_commit();
  };
  const auto issue_dvalue = [&]() __attribute__((always_inline)) {
    issue_sum(dvalue, 0, dout_columns + stage_offset(dout.at));
  };
  const auto issue_dkey = [&]() __attribute__((always_inline)) {
    issue_sum(dkey, kSecond, query_columns + stage_offset(query.at));
  };
  // The gradients of scores of both groups are there: a step behind, the other group may be that
  // late. `have`: there is a step before, else what is made of them is of no use.
  const auto meet = [&](bool have) __attribute__((always_inline)) {
    if (have) ptx::named_sync(2 + 2 * ready.at + group, 256);
    ptx::fence_shared();  // by who reads them: who stored them would have to wait for that
  };
  const auto issue_dquery = [&]() __attribute__((always_inline)) {
    ptx::wgmma_fence();
    multiply_columns_in_place<T, kRows, kQueries>(
        reinterpret_cast<float(&)[32]>(b), score_rows + ((ready.at * Layout::kScoreBytes) >> 4),
        key_columns, zero);
    ptx::wgmma_commit();
  };
  // In turns each group has the tensor cores while the other finds weights and gradients of scores.
  const auto turn = [&] { ptx::named_sync(12 + group, 256); };
  const auto pass_turn = [&] { ptx::named_arrive(12 + (group ^ 1), 256); };
  const auto pin_a = [&] { ptx::pin(a); };
  const auto pin_b = [&] { ptx::pin(b); };
  // To add_queries(), which fences: here a fence would wait for every store. Not `have`: as above,
  // and nobody is told.
  const std::uint32_t dquery_at =
      base + Layout::kDquery + group * Layout::kPartBytes + threadIdx.x % 128 * 16;
  const auto store_dquery = [&](bool have) __attribute__((always_inline)) {
    static_assert(Layout::kShape.buffers == 2 && Layout::kAddTurns == 2);  // so `ready` tells all
    ptx::wait(barrier(Layout::kDqueryEmpty + group), ready.at ^ 1);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      ptx::store_shared(dquery_at + i * 2048, b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]);
    }
    __syncwarp();
    const bool mine = lane == 0 && have;
    ptx::arrive(barrier(Layout::kDqueryFull + ready.at * Layout::kShape.groups + group), mine);
    ptx::arrive(barrier(Layout::kScoresEmpty + ready.at), mine);
    if (have) ready.advance();
  };
  // Statistics of this thread's columns, as QueryTiles orders them, four at a time: lse of all,
  // then delta. Sixteen are here; the next take the place of those that are done with. With a cap
  // both are wanted at once, and come when they are: no registers are left before.
  const auto load_four = [&](float(&x)[16], int k) __attribute__((always_inline)) {
    ptx::load_shared(
        x + k % 4 * 4,
        base + Layout::kStatistics + dout.at * Layout::kStatisticsBytes + lane % 4 * 16 + k * 64);
  };
  const auto load_sixteen = [&](float(&x)[16], int first) __attribute__((always_inline)) {
#pragma unroll
    for (int k = 0; k < 4; ++k) load_four(x, first + k);
  };
  // Scores to weights. With a cap they wait for the gradients of weights, which take its slope.
  const auto exponentiate = [&]() __attribute__((always_inline)) {
#pragma unroll
    for (int k = 0; k < (kCap ? 0 : kFours); ++k) {
      const float* const lse = statistics + k % 4 * 4;
      float* const x = a + 8 * k;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        x[i] = ptx::power_of_two(fmaf(x[i], p.score_scale, -lse[i / 4 * 2 + i % 2]));
      }
      load_four(statistics, k + 4);
    }
  };
  // kCount weights and gradients of scores, to where `a` has them packed.
  const auto pack = [&]<int kCount>(float* w, const float* x) __attribute__((always_inline)) {
    const auto to = [&](int n) -> float& { return w[n / 4 * kFour + n % 4]; };
    const auto pair = [](const float* from) {
      return __uint_as_float(ptx::pack<T>(from[0], from[1]));
    };
#pragma unroll
    for (int n = 0; n < kCount / 2; ++n) to(n) = pair(w + 2 * n);
#pragma unroll
    for (int n = 0; n < kCount / 2; ++n) (&to(n))[kSecond] = pair(x + 2 * n);
  };
  // Weights and their gradients to weights and gradients of scores, packed.
  const auto differentiate = [&]() __attribute__((always_inline)) {
    float capped[16];  // with a cap: delta
    float(&deltas)[16] = kCap ? capped : statistics;
#pragma unroll
    for (int k = 0; k < kFours; ++k) {
      const float* const lse = statistics + k % 4 * 4;
      const float* const delta = deltas + k % 4 * 4;
      float* const w = a + 8 * k;
      float* const x = b + 8 * k;
      if (kCap && k % 4 == 0) {
        load_sixteen(capped, kFours + k);
        load_sixteen(statistics, k);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int column = i / 4 * 2 + i % 2;
        x[i] -= delta[column];
        if constexpr (kCap) {
          const float t = unit_cap<T>(w[i], p.score_scale);
          w[i] = ptx::power_of_two(fmaf(t, p.log2_cap, -lse[column]));
          x[i] *= fmaf(-t, t, 1.0F);
        }
        x[i] *= w[i];
      }
      if (!kCap && k + 4 < kFours) load_four(statistics, kFours + k + 4);
      if constexpr (kWide) pack.template operator()<8>(w, x);
    }
    // Where these go, of which a part comes from local memory. With 64 queries it is asked for
    // here, long before it is used; with 128 there is no register for it yet.
    std::uint32_t score_to = 0;
    const auto find_place = [&] { score_to = score_row + scores.at * Layout::kScoreBytes; };
    if constexpr (kWide) {
      find_place();
      ptx::pin(score_to);
    } else {
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        pack.template operator()<32>(a + 32 * i, b + 32 * i);
      }
    }
    reader.hide(group, own_row, [&](uint4 low, uint4 high) {
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        hide_packed<kFour>(a + 32 * i, part_of(low, i), part_of(high, i));
        hide_packed<kFour>(a + 32 * i + kSecond, part_of(low, i), part_of(high, i));
      }
    });
    // For the gradients of queries, which both groups gather.
    ptx::wait(barrier(Layout::kScoresEmpty + scores.at), scores.parity ^ 1);
    if constexpr (!kWide) find_place();
#pragma unroll
    for (int k = 0; k < kQueries / 16; ++k) {
      const float* g = a + k / 4 * 32 + k % 4 * kFour + kSecond;
      ptx::store_transposed(score_to + k * 2048, __float_as_uint(g[0]), __float_as_uint(g[1]),
                            __float_as_uint(g[2]), __float_as_uint(g[3]));
    }
    ptx::named_arrive(2 + 2 * scores.at + (group ^ 1), 256);
    scores.advance();
  };
  if (group == 1) ptx::named_arrive(12, 256);
  StepEntry now = reader.open();
  while ((now.info & kEnd) == 0) {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) dkey[i] = dvalue[i] = 0.0F;
    if ((now.info & kHasOthers) != 0) {
      ptx::wait(barrier(Layout::kKeyFull), own_parity);
      reader.left -= 2;
      issue_scores();
      ptx::wait(barrier(Layout::kValueFull), own_parity);
      own_parity ^= 1;
      issue_dweights();
      if (!kCap) load_sixteen(statistics, 0);
      ptx::wgmma_wait<0>();
      pin_a();
      pin_b();
      exponentiate();
      differentiate();
      bool have = false;  // a step before this one
      while (reader.left != 0) {
        if constexpr (Layout::kShape.long_turns) {
          turn();
          meet(have);
        } else {
          meet(have);
          turn();
        }
        issue_dquery();
        issue_dvalue();
        ptx::wgmma_wait<1>();
        pin_b();
        store_dquery(have);
        have = true;
        issue_dkey();
        const std::uint32_t dout_leaving = barrier(Layout::kDoutEmpty + dout.at);
        const std::uint32_t query_leaving = barrier(Layout::kQueryEmpty + query.at);
        dout.advance();
        query.advance();
        issue_dweights();
        if (!Layout::kShape.long_turns) pass_turn();
        reader.next();  // its entry is there, as its copies are
        ptx::wgmma_wait<1>();
        pin_a();
        ptx::arrive(dout_leaving, lane == 0);
        ptx::arrive(query_leaving, lane == 0);
        issue_scores();
        if (Layout::kShape.long_turns) pass_turn();
        if (!kCap) load_sixteen(statistics, 0);
        ptx::wgmma_wait<0>();
        pin_a();
        pin_b();
        exponentiate();
        differentiate();
      }
      ptx::arrive(barrier(Layout::kValueEmpty), lane == 0);
      meet(have);
      issue_dquery();
      issue_dvalue();
      ptx::wgmma_wait<1>();
      pin_b();
      store_dquery(have);
      issue_dkey();
      meet(true);
      issue_dquery();
      ptx::wgmma_wait<1>();
      pin_a();
      ptx::arrive(barrier(Layout::kDoutEmpty + dout.at), lane == 0);
      ptx::arrive(barrier(Layout::kQueryEmpty + query.at), lane == 0);
      ptx::wgmma_wait<0>();
      pin_b();
      ptx::pin(dkey);
      ptx::pin(dvalue);
      ptx::arrive(barrier(Layout::kKeyEmpty), lane == 0);
      dout.advance();
      query.advance();
    }
    const StepEntry done = now;
    now = reader.open();
    const int valid = (done.info >> kRowsShift & 0xFF) - own_row;
    const int batch = done.head_batch >> 16;
    const int head = (done.head_batch & 0xFFFF) / p.group;
    store_gradient<T, kDim>(dkey, p.dkey_out, p.dkey, p, p.head_dim, batch, head,
                            done.own_row + own_row, valid, p.scale);
    store_gradient<T, kDim>(dvalue, p.dvalue_out, p.dvalue, p, p.value_dim, batch, head,
                            done.own_row + own_row, valid, 1.0F);
    // Only now, when those of the step before are likely to be gone.
    if ((done.info & kHasOthers) != 0) store_dquery(true);
  }
}

/// Warpgroups that do not compute: one that fetches, one that adds.
constexpr int kOtherGroups = 2;
template <int kDim>
constexpr int backward_threads() {
  return 128 * (kOtherGroups + backward_shape(kDim).groups);
}

template <class T, int kDim, bool kCap>
__global__ void __launch_bounds__(backward_threads<kDim>(), 1)
    backward_kernel(const __grid_constant__ BackwardParameters<T> p,
                    const __grid_constant__ CUtensorMap query,
                    const __grid_constant__ CUtensorMap dout,
                    const __grid_constant__ CUtensorMap key,
                    const __grid_constant__ CUtensorMap value) {
  using Layout = BackwardLayout<kDim>;
  constexpr BackwardShape kShape = Layout::kShape;
  constexpr int kComputeRegisters =
      (512 - kOtherGroups * kShape.fetch_registers) / kShape.groups / 8 * 8;
  extern __shared__ __align__(1024) unsigned char memory[];
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  const auto steps = steps_at<Layout>(base);

  if (threadIdx.x == 0) {
    if ((base & 1023) != 0) __trap();  // swizzled tiles need it
    Layout::init_barriers(base);
    ptx::fence_barrier_init();
    ptx::prefetch_map(&query);
    ptx::prefetch_map(&dout);
    ptx::prefetch_map(&key);
    ptx::prefetch_map(&value);
  }
  __syncthreads();

  const int group = ptx::uniform(static_cast<int>(threadIdx.x / 128));
  if (group == 0) {
    ptx::release_registers<kShape.fetch_registers>();
    const int warp = threadIdx.x / 32;
    if (warp == 0) {
      if (threadIdx.x == 0) fetch_backward<T, kDim>(p, base, steps, &query, &dout, &key, &value);
    } else if (warp == 1) {
      produce_steps<false, kShape.groups, kShape.queries, true>(p, steps);
    } else {
      const int thread = threadIdx.x - 64;
      int cleared = -1;
      find_bits<false, kShape.groups>(
          p, steps, thread, [&](const BitsRequest& r, const auto& until_asked) {
            clear_step<T, kDim>(p, base, r, until_asked, thread, cleared);
          });
    }
  } else if (group <= kShape.groups) {
    ptx::request_registers<kComputeRegisters>();
    compute_backward<T, kDim, kCap>(p, base, steps, group - 1);
  } else {
    ptx::release_registers<kShape.fetch_registers>();
    add_queries<T, kDim>(p, base, steps, threadIdx.x / 32 % 4);
  }
}

template <class T, int kDim, bool kCap>
cudaError_t launch_backward(const BackwardParameters<T>& p, const CUtensorMap& query,
                            const CUtensorMap& dout, const CUtensorMap& key,
                            const CUtensorMap& value, cudaStream_t stream) {
  using Layout = BackwardLayout<kDim>;
  return launch_persistent<backward_kernel<T, kDim, kCap>, backward_threads<kDim>(),
                           Layout::kBytes>(p.tiles, stream, p, query, dout, key, value);
}

}  // namespace ringattn::cuda::sm90
