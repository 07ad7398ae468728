// SPDX-License-Identifier: Apache-2.0
// Where everything of a backward block lies in shared memory, and which barrier is for what.
#pragma once

#include "cuda/sm90/parameters.h"
#include "cuda/sm90/steps.cuh"

namespace ringattn::cuda::sm90 {

template <int kDim>
struct BackwardLayout {
  static constexpr BackwardShape kShape = backward_shape(kDim);
  static constexpr int kRows = kGroupRows * kShape.groups;  // of keys
  static constexpr int kQueries = kShape.queries;
  static constexpr int kPanels = kDim / 64;
  static constexpr int kRing = 16;
  static constexpr int kSlots = 4;
  static constexpr int kKeyBytes = kRows * kDim * 2;
  static constexpr int kQueryBytes = kQueries * kDim * 2;
  static constexpr int kStatisticsBytes = kQueries * 8;
  static constexpr int kScoreBytes = kQueries * kRows * 2;
  using Bits = TileWords<kRows, kQueries>;

  static constexpr int kKey = 0;
  static constexpr int kValue = kKeyBytes;
  static constexpr int kQuery = kValue + kKeyBytes;
  static constexpr int kDout = kQuery + kShape.query_stages * kQueryBytes;
  static constexpr int kScores = kDout + kShape.dout_stages * kQueryBytes;  // gradients of scores
  static constexpr int kDquery =
      kScores + kShape.buffers * kScoreBytes;  // on their way out, a part per group
  static constexpr int kPartBytes = QueryTiles::kPart * 4;
  static constexpr int kStatistics = kDquery + kShape.groups * kPartBytes;
  static constexpr int kBits = kStatistics + kShape.dout_stages * kStatisticsBytes;
  static constexpr int kEntries = kBits + kSlots * Bits::kBytes;
  static constexpr int kRequests = kEntries + kRing * static_cast<int>(sizeof(StepEntry));
  static constexpr int kBarriers = kRequests + kSlots * BitsRequest::kBytes;

  struct Steps : StepShared<kRing, kSlots, Bits> {
    using Ring = Place<kRing>;
    using Slots = Place<kSlots>;
  };
  static constexpr int kKeyFull = Steps::kBarriers;
  static constexpr int kKeyEmpty = kKeyFull + 1;
  static constexpr int kValueFull = kKeyFull + 2;
  static constexpr int kValueEmpty = kKeyFull + 3;
  static constexpr int kQueryFull = kKeyFull + 4;
  static constexpr int kQueryEmpty = kQueryFull + kShape.query_stages;
  static constexpr int kDoutFull = kQueryEmpty + kShape.query_stages;  // gradients and statistics
  static constexpr int kDoutEmpty = kDoutFull + kShape.dout_stages;
  static constexpr int kScoresEmpty = kDoutEmpty + kShape.dout_stages;
  // Who adds dQ: a warp per group and turn, a part of dQ per group.
  static constexpr int kAdders = 4;
  static constexpr int kAddTurns = kAdders / kShape.groups;
  static constexpr int kDqueryFull = kScoresEmpty + kShape.buffers;
  static constexpr int kDqueryEmpty = kDqueryFull + kAdders;
  static constexpr int kBytes = kBarriers + 8 * (kDqueryEmpty + kShape.groups);
  static_assert(kBytes <= 227 * 1024);

  /// By one thread. Those who add read the steps, as the thread that fetches does.
  RINGATTN_DEVICE static void init_barriers(std::uint32_t base) {
    const auto barrier = [&](int i) { return base + kBarriers + 8 * i; };
    steps_at<BackwardLayout>(base).init_barriers(kShape.groups, 1 + kAdders);
    for (const int full : {kKeyFull, kValueFull}) ptx::barrier_init(barrier(full), 1);
    for (const int empty : {kKeyEmpty, kValueEmpty}) {
      ptx::barrier_init(barrier(empty), 4 * kShape.groups);
    }
    for (int i = 0; i < kShape.query_stages; ++i) {
      ptx::barrier_init(barrier(kQueryFull + i), 1);
      ptx::barrier_init(barrier(kQueryEmpty + i), 4 * kShape.groups);
    }
    for (int i = 0; i < kShape.dout_stages; ++i) {
      ptx::barrier_init(barrier(kDoutFull + i), 1);
      ptx::barrier_init(barrier(kDoutEmpty + i), 4 * kShape.groups);
    }
    for (int i = 0; i < kShape.buffers; ++i) {
      ptx::barrier_init(barrier(kScoresEmpty + i), 4 * kShape.groups);
    }
    for (int i = 0; i < kAdders; ++i) ptx::barrier_init(barrier(kDqueryFull + i), 4);
    for (int i = 0; i < kShape.groups; ++i) ptx::barrier_init(barrier(kDqueryEmpty + i), 1);
  }
};

}  // namespace ringattn::cuda::sm90
