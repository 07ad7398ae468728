// SPDX-License-Identifier: Apache-2.0
// The forward pass on Hopper (after FlashAttention-3, Shah et al. 2024, arXiv 2407.08608: copies by
// a warp of their own, two warpgroups in turns, the next scores under way during a softmax), with
// the softmax of softmax.cuh and the steps of steps.cuh. One block per multiprocessor, alive until
// there are no more query rows.
#pragma once

#include "cuda/sm90/fetch.cuh"
#include "cuda/sm90/find_bits.cuh"
#include "cuda/sm90/layout.cuh"
#include "cuda/sm90/padding.cuh"
#include "cuda/sm90/persistent.cuh"
#include "cuda/sm90/products.cuh"
#include "cuda/sm90/rows.cuh"
#include "cuda/sm90/softmax.cuh"

namespace ringattn::cuda::sm90 {

/// What a warpgroup computes: all steps of all its rows.
template <class T, int kDim, bool kCap>
RINGATTN_DEVICE void compute(const ForwardParameters<T>& p, std::uint32_t base,
                             const typename ForwardLayout<kDim>::Steps& steps, int group) {
  using Layout = ForwardLayout<kDim>;
  constexpr ForwardShape kShape = Layout::kShape;
  constexpr int kColumns = kShape.columns;
  constexpr bool kTwoWeights = kShape.two_weights;
  const int lane = threadIdx.x % 32;
  const int warp_row = group * kGroupRows + threadIdx.x % 128 / 32 * 16 + lane / 4;
  const bool speaker = threadIdx.x % 128 == 0;  // of the warpgroup
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };
  const std::uint64_t query = ptx::descriptor(base + group * kGroupRows * 128, 16);
  const std::uint64_t keys = ptx::descriptor(base + Layout::kKeys, 16);
  const std::uint64_t values = ptx::descriptor(base + Layout::kValues, kColumns * 128);

  typename Layout::Steps::Ring ring;
  typename Layout::Steps::Slots slots;
  Place<kShape.stages> key;
  Place<kShape.stages> value;
  int query_parity = 0;
  const float scale = kCap ? 1.0F : p.score_scale;

  Softmax<T, kColumns> softmax;
  float acc[kDim / 2];
  float s[kColumns / 2];
  std::uint32_t pa[kColumns / 4];
  std::uint32_t pb[kShape.two_weights ? kColumns / 4 : 1];

  const auto turn = [&] {
    if (kShape.turns) ptx::named_sync(1 + group, 256);
  };
  const auto pass_turn = [&] {
    if (kShape.turns) {
      ptx::named_arrive(1 + (group + 1 == kShape.groups ? 0 : group + 1), 256);
    }
  };
  const auto wait_key = [&] { ptx::wait(barrier(Layout::kKeyFull + key.at), key.parity); };
  const auto wait_value = [&] { ptx::wait(barrier(Layout::kValueFull + value.at), value.parity); };
  const auto release_key = [&] {
    if (speaker) ptx::arrive(barrier(Layout::kKeyEmpty + key.at));
    key.advance();
  };
  const auto release_value = [&] {
    if (speaker) ptx::arrive(barrier(Layout::kValueEmpty + value.at));
    value.advance();
  };
  const auto issue_scores = [&]() __attribute__((always_inline)) {
    ptx::wgmma_fence();
    multiply_rows<T, kDim, kColumns, Layout::kRows>(s, query,
                                                    keys + ((key.at * Layout::kTileBytes) >> 4));
    ptx::wgmma_commit();
  };
  const auto issue_gather = [&](const std::uint32_t(&w)[kColumns / 4])
      __attribute__((always_inline)) {
    ptx::wgmma_fence();
    gather<T, kDim, kColumns>(acc, w, values + ((value.at * Layout::kTileBytes) >> 4));
    ptx::wgmma_commit();
  };
  // What the current entry says, and what is left of it: twice its steps, plus 1 if another entry
  // of these rows follows.
  int info = 0;
  int left = 0;
  const auto take_up = [&] {
    left = info >> kStepsShift << 1 | (info & kMore);
    if (lane == 0) ptx::arrive(steps.empty(ring.at));
    ring.advance();
  };
  // The next entry of these rows: that it is there is known from its keys.
  const auto next_entry = [&] {
    info = ptx::uniform(steps.info(ring.at));
    take_up();
  };
  // The entry that begins the next block of rows. Not at the head of the loop over them: the wait
  // there costs the compiler its view of which registers wgmma may have (C7512).
  const auto open = [&] {
    ptx::wait(steps.full(ring.at), ring.parity);
    StepEntry e = steps.entry(ring.at);
    e.info = ptx::uniform(e.info);
    e.own_row = ptx::uniform(e.own_row);
    e.head_batch = ptx::uniform(e.head_batch);
    info = e.info;
    take_up();
    return e;
  };
  // Of others' pairs too: who left a slot before it is filled could leave it twice in a round, once
  // in place of a group that still reads it.
  const auto wait_bits = [&] { ptx::wait(steps.bits_full(slots.at), slots.parity); };
  const auto leave_bits = [&] {
    if (lane == 0) ptx::arrive(steps.bits_empty(slots.at));
    slots.advance();
  };
  // Products to scores: cap and mask.
  const auto finish_scores = [&]() __attribute__((always_inline)) {
    if constexpr (kCap) soft_cap<T>(s, p.score_scale, p.log2_cap);
    if ((info & kMaskedAny) != 0) {
      wait_bits();
      if ((info & kMasked << group) != 0) {
        using Bits = typename Layout::Bits;
        const std::uint32_t from = steps.bits_of(slots.at);
        hide(s, Bits::load(from, warp_row), Bits::load(from, warp_row + 8), -kInfinity<float>);
      }
      __syncwarp();
      leave_bits();
    }
  };
  const auto release_query = [&] {
    if (lane == 0) ptx::arrive(barrier(Layout::kQueryEmpty));
  };
  // Steps in which this group sees nothing, before the first in which it does. False: there is
  // none.
  const auto skip = [&] {
    bool taken_turn = true;  // the first step of a block of rows has none
    while ((info & kSkip << group) != 0) {
      if (!taken_turn) {
        turn();
        pass_turn();
      }
      taken_turn = false;
      wait_key();
      if (left == 1) {
        next_entry();
        if ((info & kSkip << group) == 0) break;
      }
      left -= 2;
      if ((info & kMaskedAny) != 0) {
        wait_bits();
        leave_bits();
      }
      wait_value();
      // Elsewhere wgmma keeps the warps of a group together; here one could miss a round.
      ptx::named_sync(1 + kShape.groups + group, 128);
      release_key();
      release_value();
      if (left == 0) return false;
    }
    return true;
  };
  // One step after the first of a block of rows: the scores of this one, the products of the one
  // before, whose weights are in `before`.
  const auto step = [&](std::uint32_t(&before)[kColumns / 4], std::uint32_t(&now)[kColumns / 4])
      __attribute__((always_inline)) {
    if constexpr (kTwoWeights) {
      wait_key();
      if (left == 1) next_entry();
      left -= 2;
      turn();
      issue_scores();
      wait_value();
      issue_gather(before);
      pass_turn();
      ptx::wgmma_wait<1>();
      ptx::pin(s);
      release_key();
    } else {
      wait_value();
      turn();
      issue_gather(before);
      wait_key();
      if (left == 1) next_entry();
      left -= 2;
      issue_scores();
      pass_turn();
      ptx::wgmma_wait<1>();
      release_value();
      ptx::wgmma_wait<0>();
      ptx::pin(s);
      ptx::pin(acc);
      ptx::pin(before);
      release_key();
    }
    if (left == 0) release_query();
    finish_scores();
    const bool raised = softmax.next(s, now, scale);
    if constexpr (kTwoWeights) {
      ptx::wgmma_wait<0>();
      ptx::pin(acc);
      release_value();
    }
    if (raised) rescale(acc, softmax.factor0, softmax.factor1);
  };
  const auto last_gather = [&](std::uint32_t(&w)[kColumns / 4]) __attribute__((always_inline)) {
    issue_gather(w);
    ptx::wgmma_wait<0>();
    ptx::pin(acc);
  };

  // Made anew where it is used: registers are scarce in between.
  const auto mine_of = [&](const StepEntry& e) {
    return Mine<T, kDim>{p,
                         e.head_batch >> 16,
                         e.head_batch & 0xFFFF,
                         e.own_row + warp_row,
                         (e.info >> kRowsShift & 0xFF) - warp_row,
                         2 * (lane % 4)};
  };

  if (kShape.turns && group == kShape.groups - 1) ptx::named_arrive(1, 256);
  StepEntry now = open();
  while ((now.info & kEnd) == 0) {
    bool seen = (info & kHasOthers) != 0;
    if (seen) {
      seen = skip();
      if (!seen) {
        ptx::wait(barrier(Layout::kQueryFull), query_parity);
        release_query();
      }
    }
    // Read before it is wanted: on its way during the first scores and their softmax.
    mine_of(now).load_state(softmax, acc);
    if (seen) {
      ptx::wait(barrier(Layout::kQueryFull), query_parity);
      wait_key();
      left -= 2;
      issue_scores();
      ptx::wgmma_wait<0>();
      ptx::pin(s);
      release_key();
      if (left == 0) release_query();
      finish_scores();
      softmax.first(s, pa, scale);
      const bool raised = (softmax.factor0 != 1.0F) | (softmax.factor1 != 1.0F);
      if (!p.first && __any_sync(0xFFFFFFFFU, raised) != 0) {
        rescale(acc, softmax.factor0, softmax.factor1);
      }
      if constexpr (kTwoWeights) {
        bool in_b = false;
        for (;;) {
          if (left == 0) break;
          step(pa, pb);
          in_b = true;
          if (left == 0) break;
          step(pb, pa);
          in_b = false;
        }
        wait_value();
        if (in_b) {
          last_gather(pb);
        } else {
          last_gather(pa);
        }
      } else {
        while (left != 0) step(pa, pa);
        wait_value();
        last_gather(pa);
      }
      release_value();
    }
    if ((now.info & kHasOthers) != 0) query_parity ^= 1;
    const StepEntry done = now;
    now = open();
    mine_of(done).store(acc, softmax);
  }
}

template <class T, int kDim, bool kCap>
__global__ void __launch_bounds__(ForwardLayout<kDim>::kThreads, 1)
    forward_kernel(const __grid_constant__ ForwardParameters<T> p,
                   const __grid_constant__ CUtensorMap query,
                   const __grid_constant__ CUtensorMap key,
                   const __grid_constant__ CUtensorMap value) {
  using Layout = ForwardLayout<kDim>;
  constexpr ForwardShape kShape = Layout::kShape;
  extern __shared__ __align__(1024) unsigned char memory[];
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  const auto steps = steps_at<Layout>(base);

  if (threadIdx.x == 0) {
    if ((base & 1023) != 0) __trap();  // swizzled tiles need it
    Layout::init_barriers(base);
    ptx::fence_barrier_init();
    ptx::prefetch_map(&query);
    ptx::prefetch_map(&key);
    ptx::prefetch_map(&value);
  }
  __syncthreads();

  // Uniform as far as the compiler can see: what depends on it stays in uniform registers, as the
  // descriptors of wgmma must.
  const int group = ptx::uniform(static_cast<int>(threadIdx.x / 128));
  if (group == 0) {
    ptx::release_registers<kShape.fetch_registers>();
    const int warp = threadIdx.x / 32;
    if (warp == 0) {
      if (threadIdx.x == 0) fetch<kDim>(base, steps, p.group, &query, &key, &value);
    } else if (warp == 1) {
      produce_steps<true, kShape.groups, kShape.columns, false>(p, steps);
    } else {
      const int thread = threadIdx.x - 64;
      find_bits<true, kShape.groups>(p, steps, thread,
                                     [&](const BitsRequest& r, const auto& until_asked) {
                                       clear_values<kDim>(p, base, r, until_asked, thread);
                                     });
    }
  } else {
    ptx::request_registers<kShape.compute_registers>();
    compute<T, kDim, kCap>(p, base, steps, group - 1);
  }
}

template <class T, int kDim, bool kCap>
cudaError_t launch(const ForwardParameters<T>& p, const CUtensorMap& query, const CUtensorMap& key,
                   const CUtensorMap& value, cudaStream_t stream) {
  using Layout = ForwardLayout<kDim>;
  return launch_persistent<forward_kernel<T, kDim, kCap>, Layout::kThreads, Layout::kBytes>(
      p.tiles, stream, p, query, key, value);
}

}  // namespace ringattn::cuda::sm90
