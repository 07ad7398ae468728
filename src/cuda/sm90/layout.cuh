// SPDX-License-Identifier: Apache-2.0
// Where everything of a forward block lies in shared memory, and which barrier is for what.
#pragma once

#include "cuda/sm90/parameters.h"
#include "cuda/sm90/steps.cuh"

namespace ringattn::cuda::sm90 {

template <int kDim>
struct ForwardLayout {
  static constexpr ForwardShape kShape = forward_shape(kDim);
  static constexpr int kThreads = 128 * (kShape.groups + 1);
  static constexpr int kRows = kGroupRows * kShape.groups;
  static constexpr int kPanels = kDim / 64;
  static constexpr int kRing = kDim == 256 ? 8 : 16;
  static constexpr int kSlots = kDim == 256 ? 2 : 4;
  static constexpr int kQueryBytes = kRows * kDim * 2;
  static constexpr int kTileBytes = kShape.columns * kDim * 2;
  using Bits = TileWords<kRows, kShape.columns>;

  static constexpr int kKeys = kQueryBytes;
  static constexpr int kValues = kKeys + kShape.stages * kTileBytes;
  static constexpr int kBits = kValues + kShape.stages * kTileBytes;
  static constexpr int kEntries = kBits + kSlots * Bits::kBytes;
  static constexpr int kRequests = kEntries + kRing * static_cast<int>(sizeof(StepEntry));
  static constexpr int kBarriers = kRequests + kSlots * BitsRequest::kBytes;

  struct Steps : StepShared<kRing, kSlots, Bits> {
    using Ring = Place<kRing>;
    using Slots = Place<kSlots>;
  };
  static constexpr int kQueryFull = Steps::kBarriers;
  static constexpr int kQueryEmpty = kQueryFull + 1;
  static constexpr int kKeyFull = kQueryFull + 2;
  static constexpr int kKeyEmpty = kKeyFull + kShape.stages;
  static constexpr int kValueFull = kKeyEmpty + kShape.stages;
  static constexpr int kValueEmpty = kValueFull + kShape.stages;
  static constexpr int kBytes = kBarriers + 8 * (kValueEmpty + kShape.stages);
  static_assert(kBytes <= 227 * 1024);

  /// By one thread.
  RINGATTN_DEVICE static void init_barriers(std::uint32_t base) {
    const auto barrier = [&](int i) { return base + kBarriers + 8 * i; };
    steps_at<ForwardLayout>(base).init_barriers(kShape.groups, 1);
    ptx::barrier_init(barrier(kQueryFull), 1);
    ptx::barrier_init(barrier(kQueryEmpty), 4 * kShape.groups);
    for (int i = 0; i < kShape.stages; ++i) {
      ptx::barrier_init(barrier(kKeyFull + i), 1);
      ptx::barrier_init(barrier(kKeyEmpty + i), kShape.groups);
      ptx::barrier_init(barrier(kValueFull + i), 1);
      ptx::barrier_init(barrier(kValueEmpty + i), kShape.groups);
    }
  }
};

}  // namespace ringattn::cuda::sm90
