// SPDX-License-Identifier: Apache-2.0
// The bits of masked tiles, by warps that find them while others compute.
#pragma once

#include "cuda/bits.cuh"
#include "cuda/sm90/steps.cuh"

namespace ringattn::cuda::sm90 {

/// Segment ids as a lane of a warp sees them: of its own row of every warpgroup, and of one of
/// every 32 others. -1: no such row.
template <bool kKeys, int kGroups, int kWords>
struct SegmentIds {
  int mine[kGroups], theirs[kWords];

  RINGATTN_DEVICE SegmentIds(const PairSchedule& s, const BitsRequest& r, int row) {
    const int lane = threadIdx.x % 32;
    const int batch = r.head_batch >> 16;
    const auto ids = [&](bool of_queries) {
      const ShardSegments& side = of_queries ? s.query_segments : s.key_segments;
      const Positions& rows = of_queries ? s.queries.positions : s.keys.positions;
      return side.ids + batch * rows.size();
    };
    const int* own = ids(kKeys) + r.own_row + row;
    const int* others = ids(!kKeys) + r.other_row + lane;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      mine[g] = row + g * kGroupRows < r.rows ? own[g * kGroupRows] : -1;
    }
#pragma unroll
    for (int n = 0; n < kWords; ++n) theirs[n] = 32 * n + lane < r.columns ? others[32 * n] : -1;
  }

  /// Which of the 32 others of word n have the ids of this lane's own rows.
  RINGATTN_DEVICE void words(int n, std::uint32_t (&words)[kGroups]) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) words[g] = 0;
    // Few different ones: documents are long.
    unsigned left = __ballot_sync(0xFFFFFFFFU, theirs[n] >= 0);
#pragma unroll 1
    while (left != 0) {
      const int id = __shfl_sync(0xFFFFFFFFU, theirs[n], __ffs(static_cast<int>(left)) - 1);
      const unsigned same = __ballot_sync(0xFFFFFFFFU, theirs[n] == id);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        if (same_segment(mine[g], id)) words[g] = same;
      }
      left &= ~same;
    }
  }
};

/// Is there anything to clear in the tile of others of a request?
template <int kColumns>
RINGATTN_DEVICE bool others_padded(const BitsRequest& r) {
  return r.columns < kColumns || (r.flags & kPadded) != 0;
}

RINGATTN_DEVICE BitsRequest load_request(std::uint32_t from) {
  const uint4 a = ptx::load_words(from);
  const uint4 b = ptx::load_words(from + 16);
  const uint4 c = ptx::load_words(from + 32);
  const auto number = [](std::uint32_t word) { return static_cast<int>(word); };
  return {number(a.x), number(a.y), number(a.z), number(a.w), number(b.x), number(b.y),
          number(b.z), number(b.w), number(c.x), number(c.y), number(c.z), c.w};
}

/// By the warps that find bits: the words of every own row, columns beyond the tile and rows beyond
/// the block 0. With segment ids clear(request, until_asked) comes before anyone learns the bits;
/// until_asked() waits until the copies of the step have been asked for.
template <bool kKeys, int kGroups, class P, class Shared, class Clear>
RINGATTN_DEVICE void find_bits(const P& p, const Shared& shared, int thread, const Clear& clear) {
  using Bits = typename Shared::Bits;
  typename Shared::Slots slots;
#pragma unroll 1
  for (std::uint32_t number = 1;; ++number, slots.advance()) {
    ptx::wait_asleep(shared.wanted(slots.at), slots.parity);
    const std::uint32_t from = shared.requests + BitsRequest::kBytes * slots.at;
    const std::uint32_t to = shared.bits_of(slots.at);
    const BitsRequest r = load_request(from);
    if (r.rows == 0) return;
    if (p.banded) {
      const Band32 band = p.bands[r.runs & 1][r.runs >> 1];
      const int shift = r.own_index + thread - r.other_index;
      const auto seen = [&](int g, int n) {
        const int begin = shift + g * kGroupRows + band.begin;
        const int end = shift + g * kGroupRows + band.end;
        return thread + g * kGroupRows < r.rows
                   ? bit_range(max(begin - 32 * n, 0), min(end, r.columns) - 32 * n)
                   : 0;
      };
      if ((r.flags & kIdsDecide) != 0) {
        const SegmentIds<kKeys, kGroups, Bits::kWords> ids(p.schedule, r, thread);
#pragma unroll
        for (int n = 0; n < Bits::kWords; ++n) {
          std::uint32_t words[kGroups];
          ids.words(n, words);
#pragma unroll
          for (int g = 0; g < kGroups; ++g) {
            Bits::store(to, thread + g * kGroupRows, n, seen(g, n) & words[g]);
          }
        }
      } else {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
#pragma unroll
          for (int n = 0; n < Bits::kWords; ++n) {
            Bits::store(to, thread + g * kGroupRows, n, seen(g, n));
          }
        }
      }
    } else {
      const Tiling& others = kKeys ? p.schedule.keys : p.schedule.queries;
#pragma unroll 1
      for (int row = thread; row < kGroups * kGroupRows; row += kGroupRows) {
#pragma unroll 1
        for (int n = 0; n < Bits::kWords; ++n) {
          const int columns = min(r.columns - 32 * n, 32);
          Bits::store(
              to, row, n,
              row < r.rows && columns > 0
                  ? visible_word<kKeys>(p.schedule, r.head_batch >> 16, r.head_batch & 0xFFFF,
                                        r.own_row + row, others[r.other_tile], 32 * n, columns)
                  : 0);
        }
      }
    }
    // Read anew: registers are few, and no one else wants all of it.
    if (p.segmented) {
      clear(load_request(from), [&] { ptx::wait_for_count(shared.asked(), number); });
    }
    ptx::arrive(shared.bits_full(slots.at));  // every thread: each has written words of its own
  }
}

}  // namespace ringattn::cuda::sm90
