// SPDX-License-Identifier: Apache-2.0
// How a warpgroup that computes follows the steps of its blocks of rows.
#pragma once

#include "cuda/sm90/softmax.cuh"
#include "cuda/sm90/steps.cuh"

namespace ringattn::cuda::sm90 {

template <class Layout>
struct StepReader {
  typename Layout::Steps steps;
  typename Layout::Steps::Ring ring;
  typename Layout::Steps::Slots slots;
  int info = 0;  // of the current entry
  int left = 0;  // twice what is left of it, plus 1 if another entry of these rows follows

  RINGATTN_DEVICE explicit StepReader(const typename Layout::Steps& s) : steps(s) {}

  /// The entry that begins the next block of rows. Not at the head of the loop over them: the wait
  /// there costs the compiler its view of which registers wgmma may have (C7512).
  RINGATTN_DEVICE StepEntry open() {
    ptx::wait(steps.full(ring.at), ring.parity);
    StepEntry e = steps.entry(ring.at);
    e.own_row = ptx::uniform(e.own_row);
    e.other_row = ptx::uniform(e.other_row);
    e.head_batch = ptx::uniform(e.head_batch);
    take_up(e.info);
    e.info = info;
    return e;
  }
  /// To the next step of these rows. That its entry is there is known from its rows.
  RINGATTN_DEVICE void next() {
    if (left == 1) take_up(steps.info(ring.at));
    left -= 2;
  }
  /// The words of bits of this thread's two rows, if some of this group's pairs are hidden.
  template <class Hide>
  RINGATTN_DEVICE void hide(int group, int own_row, const Hide& hide) {
    if ((info & kMaskedAny) == 0) return;
    // Of others' pairs too: who left a slot before it is filled could leave it twice in a round,
    // once in place of a group that still reads it.
    ptx::wait(steps.bits_full(slots.at), slots.parity);
    if ((info & kMasked << group) != 0) {
      using Bits = typename Layout::Bits;
      const std::uint32_t from = steps.bits_of(slots.at);
      hide(Bits::load(from, own_row), Bits::load(from, own_row + 8));
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::arrive(steps.bits_empty(slots.at));
    slots.advance();
  }

 private:
  RINGATTN_DEVICE void take_up(int entry) {
    info = ptx::uniform(entry);
    left = info >> kStepsShift << 1 | (info & kMore);
    if (threadIdx.x % 32 == 0) ptx::arrive(steps.empty(ring.at));
    ring.advance();
  }
};

}  // namespace ringattn::cuda::sm90
