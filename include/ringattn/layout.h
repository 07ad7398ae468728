// SPDX-License-Identifier: Apache-2.0
// THE definition of who holds which positions.
#pragma once

#include <cstdint>

#include "ringattn/mask.h"
#include "ringattn/tensor.h"

namespace ringattn {

/// How a sequence of S rows is cut over N ranks. Chunk c of n covers [c*S/n, (c+1)*S/n).
enum class Layout : std::uint8_t {
  kContiguous,  // rank r holds chunk r of N
  kZigzag,      // rank r holds chunks r and 2N-1-r of 2N: causal work is balanced
  kStriped,     // rank r holds r, r+N, r+2N, ... (Brandon et al. 2023, arXiv 2311.09431)
};

/// "contiguous", "zigzag", "striped".
constexpr const char* name(Layout layout) noexcept {
  switch (layout) {
    case Layout::kContiguous: return "contiguous";
    case Layout::kZigzag: return "zigzag";
    case Layout::kStriped: return "striped";
  }
  return "?";
}

/// Rows [0, count) of a run hold positions first, first + stride, first + 2*stride, ...
struct Run {
  std::int64_t first = 0;
  std::int64_t count = 0;

  friend constexpr bool operator==(const Run&, const Run&) = default;
};

/// The global positions of one shard's rows, in order: two runs with one stride, or any list.
struct Positions {
  Run runs[2];
  std::int64_t stride = 1;
  const std::int64_t* list = nullptr;  // runs[0].count explicit positions, in any order

  RINGATTN_HOST_DEVICE constexpr std::int64_t size() const { return runs[0].count + runs[1].count; }

  /// The position of local row i.
  RINGATTN_HOST_DEVICE constexpr std::int64_t operator()(std::int64_t i) const {
    if (list != nullptr) return list[i];
    return i < runs[0].count ? runs[0].first + i * stride
                             : runs[1].first + (i - runs[0].count) * stride;
  }
};

/// Where chunk `index` of `chunks` of a sequence of `length` rows begins. Exact for any int64
/// length: (length / chunks) * index + (length % chunks) * index / chunks.
RINGATTN_HOST_DEVICE constexpr std::int64_t chunk_begin(std::int64_t length, std::int64_t chunks,
                                                        std::int64_t index) {
  return length / chunks * index + length % chunks * index / chunks;
}

/// The rows that `rank` of `world` holds of a sequence of `length` rows. A rank may hold none.
RINGATTN_HOST_DEVICE constexpr Positions positions(Layout layout, std::int64_t length,
                                                   std::int64_t world, std::int64_t rank) {
  Positions p;
  switch (layout) {
    case Layout::kContiguous: {
      p.runs[0].first = chunk_begin(length, world, rank);
      p.runs[0].count = chunk_begin(length, world, rank + 1) - p.runs[0].first;
      break;
    }
    case Layout::kZigzag: {
      const std::int64_t chunks[2] = {rank, 2 * world - 1 - rank};
      for (int i = 0; i < 2; ++i) {
        p.runs[i].first = chunk_begin(length, 2 * world, chunks[i]);
        p.runs[i].count = chunk_begin(length, 2 * world, chunks[i] + 1) - p.runs[i].first;
      }
      break;
    }
    case Layout::kStriped: {
      p.stride = world;
      p.runs[0].first = rank;
      p.runs[0].count = rank < length ? (length - rank - 1) / world + 1 : 0;
      break;
    }
  }
  return p;
}

/// Copies the rows (dimension `seq_dim`) of `global` that `rank` holds into `local`, or back.
/// Shapes: equal but for seq_dim, where local has positions(...).size() rows. Any dtype, strides.
void shard(ConstTensorView global, int seq_dim, Layout layout, std::int64_t world,
           std::int64_t rank, TensorView local);
void unshard(ConstTensorView local, int seq_dim, Layout layout, std::int64_t world,
             std::int64_t rank, TensorView global);

}  // namespace ringattn
