// SPDX-License-Identifier: Apache-2.0
// For the same bits in every run: the warp that has the copy engine add gradients of queries to
// their sums, to which other blocks add as well, in the order in which the blocks begin. A block
// waits only for blocks that began before it, so somebody can always go on.
#pragma once

#include "cuda/sm90/backward_layout.cuh"

namespace ringattn::cuda::sm90 {

/// Blocks [first, last) of a run of own rows that visit the others [begin, end): the converse of
/// other_tiles(), banded.
RINGATTN_DEVICE void own_blocks(const Traversal& p, int block_rows, int own_run, int other_run,
                                int begin, int end, int& first, int& last) {
  const Band32 band = p.bands[own_run][other_run];
  first = last = 0;
  if (band.begin >= band.end || p.own_counts[own_run] - 1 + band.end <= begin) return;
  first = max(begin - band.end + 1, 0) / block_rows;
  last = min((max(end - band.begin, 0) + block_rows - 1) / block_rows, p.own_blocks[own_run]);
}

/// How many blocks of the same head that begin before this one add to a tile of queries. By a warp.
template <class T, int kDim>
RINGATTN_DEVICE int adders_before(const BackwardParameters<T>& p, const StepEntry& e, int other_run,
                                  int tile) {
  using Layout = BackwardLayout<kDim>;
  const int run = e.own_row < p.own_counts[0] ? 0 : 1;
  const int block = (e.own_row - run * p.own_counts[0]) / Layout::kRows + run * p.own_blocks[0];
  int count = 0;
  if (p.banded && !p.segmented) {
    const int begin = tile * Layout::kQueries;
    const int end = min(begin + Layout::kQueries, p.other_counts[other_run]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int first;
      int last;
      own_blocks(p, Layout::kRows, r, other_run, begin, end, first, last);
      const int mine = block - r * p.own_blocks[0];
      count += max(p.late_first ? last - max(first, mine + 1) : min(last, mine) - first, 0);
    }
    return count;
  }
  const int place = p.late_first ? p.own_blocks[0] + p.own_blocks[1] - 1 - block : block;
  const int head = e.head_batch & 0xFFFF;
#pragma unroll 1
  for (int first = 0; first < place; first += 32) {
    const int other = first + static_cast<int>(threadIdx.x % 32);
    bool adds = false;
    if (other < place) {
      const OwnBlock own(p, Layout::kRows, e.head_batch >> 16, head / p.group, other);
      adds =
          kinds<false, Layout::kShape.groups, Layout::kQueries>(p, own, head, other_run, tile) != 0;
    }
    count += __popc(__ballot_sync(0xFFFFFFFFU, adds));
  }
  return count;
}

/// By one warp: the gradients that the groups have put into shared memory, step by step.
template <class T, int kDim>
RINGATTN_DEVICE void add_queries(const BackwardParameters<T>& p, std::uint32_t base,
                                 const typename BackwardLayout<kDim>::Steps& steps) {
  using Layout = BackwardLayout<kDim>;
  constexpr int kGroups = Layout::kShape.groups;
  const auto barrier = [&](int i) { return base + Layout::kBarriers + 8 * i; };
  const bool speaker = threadIdx.x % 32 == 0;
  typename Layout::Steps::Ring ring;
  unsigned parity = 0;
  int unsaid = -1;  // the tile that this thread has added to and not told the others of
  // Told a step late, others wait longer, but this block not for its additions: better where a step
  // is short beside them.
  constexpr bool kLate = kDim > 64;
#pragma unroll 1
  for (;; ring.advance()) {
    ptx::wait(steps.full(ring.at), ring.parity);
    const StepEntry e = steps.entry(ring.at);
    __syncwarp();
    if (speaker) ptx::arrive(steps.empty(ring.at));
    if ((e.info & kEnd) != 0) return;
    if ((e.info & kHasOthers) == 0) continue;
    const int tile =
        query_tile<T, Layout::kQueries>(p, p.other_counts[0], e.other_row, e.head_batch);
#pragma unroll 1
    for (int step = 0; step < e.info >> kStepsShift; ++step) {
      // An entry may reach from the first run into the second.
      const int row = e.other_row + step * Layout::kQueries;
      const int run = row < p.other_counts[0] ? 0 : 1;
      const int before =
          adders_before<T, kDim>(p, e, run, (row - run * p.other_counts[0]) / Layout::kQueries);
      if (speaker) {
        float* to =
            p.dquery_sum + static_cast<std::int64_t>(tile + step) * (Layout::kQueries * kDim);
        ptx::wait_count(p.added + tile + step, before);
#pragma unroll 1
        for (int g = 0; g < kGroups; ++g) {
          ptx::wait(barrier(Layout::kDqueryFull + g), parity);
          ptx::add_bytes(to + g * QueryTiles::kPart,
                         base + Layout::kDquery + g * Layout::kPartBytes, Layout::kPartBytes, true);
        }
        if (kLate && unsaid >= 0) {
          ptx::wait_bytes_added<kGroups>();
          ptx::count(p.added + unsaid);
        }
        unsaid = tile + step;
        ptx::wait_bytes_read<0>();
#pragma unroll
        for (int g = 0; g < kGroups; ++g) ptx::arrive(barrier(Layout::kDqueryEmpty + g));
        if (!kLate) {
          ptx::wait_bytes_added<0>();
          ptx::count(p.added + unsaid);
        }
      }
      __syncwarp();
      parity ^= 1;
    }
    if (kLate && (e.info & kMore) == 0 && speaker) {
      ptx::wait_bytes_added<0>();
      ptx::count(p.added + unsaid);
      unsaid = -1;
    }
  }
}

}  // namespace ringattn::cuda::sm90
