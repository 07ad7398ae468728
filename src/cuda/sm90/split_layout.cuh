// SPDX-License-Identifier: Apache-2.0
// Where everything lies in shared memory of the two kernels of a backward whose heads are too wide
// for one, and which barrier is for what.
#pragma once

#include "cuda/sm90/parameters.h"
#include "cuda/sm90/steps.cuh"

namespace ringattn::cuda::sm90 {

/// A block that keeps query rows and gathers dQ: one warpgroup that fetches, and two that compute
/// on kGroupRows rows each; keys pass by.
template <int kDim>
struct QueryGradientLayout {
  static constexpr int kGroups = 2;
  static constexpr int kRowGroups = kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kRows = kGroupRows * kRowGroups;
  static constexpr int kColumns = kSplitTile;
  static constexpr int kPanels = kDim / 64;
  static constexpr int kStages = 2;  // of keys; values have one
  static constexpr int kRing = 8;
  static constexpr int kSlots = 2;
  static constexpr int kQueryBytes = kRows * kDim * 2;
  static constexpr int kTileBytes = kColumns * kDim * 2;
  using Bits = TileWords<kRows, kColumns>;

  static constexpr int kQuery = 0;
  static constexpr int kDout = kQueryBytes;
  static constexpr int kKeys = kDout + kQueryBytes;
  static constexpr int kValues = kKeys + kStages * kTileBytes;
  static constexpr int kBits = kValues + kTileBytes;
  static constexpr int kEntries = kBits + kSlots * Bits::kBytes;
  static constexpr int kRequests = kEntries + kRing * static_cast<int>(sizeof(StepEntry));
  static constexpr int kBarriers = kRequests + kSlots * BitsRequest::kBytes;

  struct Steps : StepShared<kRing, kSlots, Bits> {
    using Ring = Place<kRing>;
    using Slots = Place<kSlots>;
  };
  static constexpr int kQueryFull = Steps::kBarriers;  // queries and their gradients
  static constexpr int kQueryEmpty = kQueryFull + 1;
  static constexpr int kKeyFull = kQueryFull + 2;
  static constexpr int kKeyEmpty = kKeyFull + kStages;
  static constexpr int kValueFull = kKeyEmpty + kStages;
  static constexpr int kValueEmpty = kValueFull + 1;
  static constexpr int kBytes = kBarriers + 8 * (kValueEmpty + 1);
  static_assert(kBytes <= 227 * 1024);
};

/// A block that keeps keys and values and gathers dK and dV; queries and their gradients pass by.
/// One warpgroup finds the weights and gathers dV, the other finds gradients of scores, for which
/// it takes the weights, and gathers dK.
template <int kDim>
struct KeyGradientLayout {
  static constexpr int kGroups = 2;
  static constexpr int kRowGroups = 1;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kRows = kGroupRows;
  static constexpr int kQueries = kSplitTile;
  static constexpr int kPanels = kDim / 64;
  static constexpr int kStages = 2;
  static constexpr int kRing = 8;
  static constexpr int kSlots = 2;
  static constexpr int kKeyBytes = kRows * kDim * 2;
  static constexpr int kQueryBytes = kQueries * kDim * 2;
  static constexpr int kStatisticsBytes = kQueries * 8;
  static constexpr int kWeightBytes = kRows * kQueries * 4;
  using Bits = TileWords<kRows, kQueries>;

  static constexpr int kKey = 0;
  static constexpr int kValue = kKeyBytes;
  static constexpr int kQuery = kValue + kKeyBytes;
  static constexpr int kDout = kQuery + kStages * kQueryBytes;
  static constexpr int kWeights = kDout + kStages * kQueryBytes;  // on their way to the other group
  static constexpr int kStatistics = kWeights + kWeightBytes;
  static constexpr int kBits = kStatistics + kStages * kStatisticsBytes;
  static constexpr int kEntries = kBits + kSlots * Bits::kBytes;
  static constexpr int kRequests = kEntries + kRing * static_cast<int>(sizeof(StepEntry));
  static constexpr int kBarriers = kRequests + kSlots * BitsRequest::kBytes;

  struct Steps : StepShared<kRing, kSlots, Bits> {
    using Ring = Place<kRing>;
    using Slots = Place<kSlots>;
  };
  static constexpr int kKeyFull = Steps::kBarriers;  // keys and values
  static constexpr int kKeyEmpty = kKeyFull + 1;
  static constexpr int kQueryFull = kKeyFull + 2;  // queries, gradients, statistics of a stage
  static constexpr int kQueryEmpty = kQueryFull + kStages;
  static constexpr int kWeightsFull = kQueryEmpty + kStages;
  static constexpr int kWeightsEmpty = kWeightsFull + 1;
  static constexpr int kBytes = kBarriers + 8 * (kWeightsEmpty + 1);
  static_assert(kBytes <= 227 * 1024);
};

}  // namespace ringattn::cuda::sm90
