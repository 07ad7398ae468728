// SPDX-License-Identifier: Apache-2.0
// Warps that have the copy engine add gradients of queries to their sums, to which other blocks add
// as well. For the same bits in every run they do so in the order in which the blocks begin: a
// block waits only for blocks that began before it, so somebody can always go on. If nothing has
// been added before the kernel, who is first stores: sums that are never read need no clearing.
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

/// How many blocks of the same head that begin before this one add to a tile of queries: of the
/// entry's step of this thread's lane. By a warp.
template <class T, int kDim>
RINGATTN_DEVICE int adders_before(const BackwardParameters<T>& p, const StepEntry& e) {
  using Layout = BackwardLayout<kDim>;
  const int own_run = e.own_row < p.own_counts[0] ? 0 : 1;
  const int block =
      (e.own_row - own_run * p.own_counts[0]) / Layout::kRows + own_run * p.own_blocks[0];
  const int place = p.late_first ? p.own_blocks[0] + p.own_blocks[1] - 1 - block : block;
  const int lane = threadIdx.x % 32;
  // An entry may reach from the first run into the second.
  const auto run_of = [&](int step) {
    return e.other_row + step * Layout::kQueries < p.other_counts[0] ? 0 : 1;
  };
  const auto index_of = [&](int step) {
    return e.other_row + step * Layout::kQueries - run_of(step) * p.other_counts[0];
  };
  int count = 0;
  if (p.banded && !p.segmented) {
    const int run = run_of(lane);
    const int begin = index_of(lane);
    const int end = min(begin + Layout::kQueries, p.other_counts[run]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int first;
      int last;
      own_blocks(p, Layout::kRows, r, run, begin, end, first, last);
      const int mine = block - r * p.own_blocks[0];
      count += max(p.late_first ? last - max(first, mine + 1) : min(last, mine) - first, 0);
    }
    return count;
  }
  const int head = e.head_batch & 0xFFFF;
#pragma unroll 1
  for (int step = 0; step < e.info >> kStepsShift; ++step) {
    int before = 0;
#pragma unroll 1
    for (int first = 0; first < place; first += 32) {
      const int other = first + lane;
      bool adds = false;
      if (other < place) {
        const OwnBlock own(p, Layout::kRows, e.head_batch >> 16, head / p.group, other);
        adds = kinds<false, Layout::kShape.groups, Layout::kQueries>(
                   p, own, head, run_of(step), index_of(step) / Layout::kQueries) != 0;
      }
      before += __popc(__ballot_sync(0xFFFFFFFFU, adds));
    }
    if (lane == step) count = before;
  }
  return count;
}

/// What has happened to a part of dQ whose sums begin with this kernel, in no particular order.
enum PartState : unsigned {
  kNothing,
  kClaimed,  // one is storing the first numbers
  kThere,
};

/// By a warpgroup: the gradients that the groups have put into shared memory. A warp adds those of
/// one group in every second step: in order, reading the count of others, adding and counting take
/// longer than a step.
template <class T, int kDim>
RINGATTN_DEVICE void add_queries(const BackwardParameters<T>& p, std::uint32_t base,
                                 const typename BackwardLayout<kDim>::Steps& steps, int warp) {
  using Layout = BackwardLayout<kDim>;
  constexpr int kGroups = Layout::kShape.groups;
  const int group = warp % kGroups;
  const int turn = warp / kGroups;
  const std::uint32_t full = base + Layout::kBarriers + 8 * (Layout::kDqueryFull + warp);
  const std::uint32_t empty = base + Layout::kBarriers + 8 * (Layout::kDqueryEmpty + group);
  const bool speaker = threadIdx.x % 32 == 0;
  typename Layout::Steps::Ring ring;
  unsigned parity = 0;
  int number = 0;  // of the steps of all rows
#pragma unroll 1
  for (;; ring.advance()) {
    ptx::wait_asleep(steps.full(ring.at), ring.parity);
    const StepEntry e = steps.entry(ring.at);
    __syncwarp();
    if (speaker) ptx::arrive(steps.empty(ring.at));
    if ((e.info & kEnd) != 0) return;
    if ((e.info & kHasOthers) == 0) continue;
    const int tile =
        query_tile<T, Layout::kQueries>(p, p.other_counts[0], e.other_row, e.head_batch);
    const int counts = p.in_order ? adders_before<T, kDim>(p, e) : 0;
#pragma unroll 1
    for (int step = 0; step < e.info >> kStepsShift; ++step, ++number) {
      const int before = __shfl_sync(0xFFFFFFFFU, counts, step);
      if (number % Layout::kAddTurns != turn) continue;
      if (speaker) {
        const std::int64_t part = static_cast<std::int64_t>(tile + step) * kGroups + group;
        unsigned* const added = p.added + part;
        bool first = p.stores_first;
        if (p.in_order) {
          ptx::wait_count(added, before);
          first = first && before == 0;
        } else if (first) {
          first = !ptx::counted(added, kThere);  // asked while there is time
        }
        ptx::wait_asleep(full, parity);
        ptx::fence_shared();
        // Only who has the numbers claims: nobody else has to wait for anything to store them.
        if (first && !p.in_order) {
          first = ptx::claim(added);
          if (!first) ptx::wait_count(added, kThere);
        }
        float* to = p.dquery_sum + part * QueryTiles::kPart;
        const std::uint32_t from = base + Layout::kDquery + group * Layout::kPartBytes;
        if (first) {
          ptx::store_bytes(to, from, Layout::kPartBytes);
        } else {
          ptx::add_bytes(to, from, Layout::kPartBytes);
        }
        ptx::wait_bytes_read<0>();
        ptx::arrive(empty);
        if (first || p.in_order) {
          ptx::wait_bytes_added<0>();
          ptx::count(added);
        }
      }
      __syncwarp();
      parity ^= 1;
    }
  }
}

}  // namespace ringattn::cuda::sm90
