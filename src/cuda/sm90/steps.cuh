// SPDX-License-Identifier: Apache-2.0
// Which steps a block takes: one warp asks the schedule, ahead of everyone, and passes its answers
// through a ring in shared memory; two warps find the bits of masked tiles. Who computes only
// learns "another step", "masked", "done": masks are data.
#pragma once

#include "cuda/bits.cuh"
#include "cuda/sm90/parameters.h"
#include "cuda/sm90/ptx.cuh"

namespace ringattn::cuda::sm90 {

/// Steps as they lie in the ring: a block of query rows against neighbouring tiles of keys that are
/// alike, late ones first.
struct StepEntry {
  int key_row;     // of the shard, of the first step
  int info;        // below
  int query_row;   // of the shard
  int head_batch;  // head | batch << 16
};
enum StepInfo : int {
  kMore = 1,     // another entry of these query rows follows
  kFirst = 2,    // the first one
  kHasKeys = 4,  // nothing to compute otherwise: these rows see nothing here
  kEnd = 8,      // there are no more rows
  kMasked = 16,  // << g: some pairs of warpgroup g are invisible
  kMaskedAny = 7 * kMasked,
  kSkip = 128,      // << g: warpgroup g has not seen anything yet, and does not here
  kRowsShift = 16,  // query rows of the block, 8 bits
  kStepsShift = 24,
  kStep = 1 << kStepsShift,
};
/// Steps of an entry at most: so many may still be to do when the next rows are chosen.
constexpr int kMostSteps = 4;

/// The rows and columns whose bits are wanted.
struct BitsRequest {
  int query_row, query_index, rows;  // of the shard; within its run; 0: no more requests
  int key_tile, key_row, key_index, columns;
  int runs;  // query run | key run << 1
  int head_batch;
  int unused[3];
};

/// Query rows [row, row + rows) of the shard, which begin at `index` of their run.
struct QueryBlock {
  int batch, head, run, index, row, rows;

  template <class T>
  RINGATTN_DEVICE QueryBlock(const ForwardParameters<T>& p, int block_rows, int t) {
    const int blocks = p.query_blocks[0] + p.query_blocks[1];
    const int per_turn = p.heads_per_turn * blocks;
    const int turn = t / per_turn;
    const int in_turn = t - turn * per_turn;
    const int place = in_turn / p.heads_per_turn;
    const int block = p.late_first ? blocks - 1 - place : place;
    const int both = turn * p.heads_per_turn + in_turn - place * p.heads_per_turn;
    batch = both / p.heads;
    head = both - batch * p.heads;
    run = block < p.query_blocks[0] ? 0 : 1;
    index = (block - run * p.query_blocks[0]) * block_rows;
    row = index + run * p.query_counts[0];
    rows = min(block_rows, p.query_counts[run] - index);
  }
};

/// Addresses of the ring and of what belongs to it. kSlots: masks that may be under way at once.
template <int kRing, int kSlots>
struct StepShared {
  std::uint32_t entries, requests, bits;
  std::uint32_t barriers;  // full and empty of the ring; wanted, full and empty of the slots
  std::uint32_t bits_bytes;

  RINGATTN_DEVICE std::uint32_t full(int i) const { return barriers + 8 * i; }
  RINGATTN_DEVICE std::uint32_t empty(int i) const { return barriers + 8 * (kRing + i); }
  RINGATTN_DEVICE std::uint32_t wanted(int s) const { return barriers + 8 * (2 * kRing + s); }
  RINGATTN_DEVICE std::uint32_t bits_full(int s) const {
    return barriers + 8 * (2 * kRing + kSlots + s);
  }
  RINGATTN_DEVICE std::uint32_t bits_empty(int s) const {
    return barriers + 8 * (2 * kRing + 2 * kSlots + s);
  }
  static constexpr int kBarriers = 2 * kRing + 3 * kSlots;

  RINGATTN_DEVICE StepEntry entry(int i) const {
    StepEntry e;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(e.key_row), "=r"(e.info), "=r"(e.query_row), "=r"(e.head_batch)
                 : "r"(entries + 16 * i)
                 : "memory");
    return e;
  }
  RINGATTN_DEVICE int info(int i) const {
    int x;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(entries + 16 * i + 4) : "memory");
    return x;
  }
};

/// A place in a ring of kCount, and the parity of its round. Written with a comparison: from a
/// remainder the compiler does not see that all threads of a warp have the same, and then what
/// depends on it must travel to uniform registers before every wgmma.
template <int kCount>
struct Place {
  int at = 0;
  unsigned parity = 0;

  RINGATTN_DEVICE void advance() {
    if (++at == kCount) {
      at = 0;
      parity ^= 1U;
    }
  }
  RINGATTN_DEVICE void back() {
    if (--at < 0) {
      at = kCount - 1;
      parity ^= 1U;
    }
  }
};

/// The kinds of one key tile for the warpgroups of a block: bit g visited, bit 16 + g masked.
template <class T, int kGroups, int kColumns>
RINGATTN_DEVICE unsigned kinds(const ForwardParameters<T>& p, const QueryBlock& q, int key_run,
                               int tile_in_run) {
  unsigned result = 0;
  const int begin = tile_in_run * kColumns;
  const int end = min(begin + kColumns, p.key_counts[key_run]);
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int rows = min(q.rows - g * kGroupRows, kGroupRows);
    if (rows <= 0) continue;
    TileKind kind = TileKind::kMasked;
    if (p.banded) {
      // Both ends of a row's keys move with the row.
      const Band32 band = p.bands[q.run][key_run];
      const int first = q.index + g * kGroupRows;
      const int last = first + rows - 1;
      if (first + band.begin >= end || last + band.end <= begin || band.begin >= band.end) {
        kind = TileKind::kSkip;
      } else if (last + band.begin <= begin && end <= first + band.end) {
        kind = TileKind::kFull;
      }
    } else {
      const Tiling& queries = p.schedule.queries;
      const Tiling& keys = p.schedule.keys;
      kind = p.schedule.kind(
          q.batch, q.head,
          (q.run == 0 ? 0 : ceil_div(queries.positions.runs[0].count, kGroupRows)) +
              q.index / kGroupRows + g,
          (key_run == 0 ? 0 : ceil_div(keys.positions.runs[0].count, kColumns)) + tile_in_run);
    }
    if (kind == TileKind::kSkip) continue;
    const bool masked = kind == TileKind::kMasked || end - begin < kColumns;
    result |= 1U << g | (masked ? 1U << (16 + g) : 0);
  }
  return result;
}

/// Tiles of a key run that a block may visit.
template <class T, int kColumns>
RINGATTN_DEVICE void key_tiles(const ForwardParameters<T>& p, const QueryBlock& q, int key_run,
                               int& begin, int& end) {
  const int count = p.key_counts[key_run];
  if (p.banded) {
    const Band32 band = p.bands[q.run][key_run];
    begin = max(q.index + band.begin, 0) / kColumns;
    end = (min(max(q.index + q.rows - 1 + band.end, 0), count) + kColumns - 1) / kColumns;
    return;
  }
  const Tiling& queries = p.schedule.queries;
  const std::int64_t before =
      key_run == 0 ? 0 : ceil_div(p.schedule.keys.positions.runs[0].count, kColumns);
  const std::int64_t first =
      (q.run == 0 ? 0 : ceil_div(queries.positions.runs[0].count, kGroupRows)) +
      q.index / kGroupRows;
  Range span = queries[first].span;
  for (int g = 1; g * kGroupRows < q.rows; ++g) {
    const Range other = queries[first + g].span;
    span = {min(span.begin, other.begin), max(span.end, other.end)};
  }
  const TileRanges seen = visit(p.schedule.mask, span, p.schedule.keys);
  begin = static_cast<int>(max(seen.visited[key_run].begin - before, std::int64_t{0}));
  end = static_cast<int>(max(seen.visited[key_run].end - before, std::int64_t{0}));
}

/// By one warp: every step of this block of threads, late keys first.
template <class T, int kDim, class Shared>
RINGATTN_DEVICE void produce_steps(const ForwardParameters<T>& p, const Shared& shared) {
  constexpr ForwardShape kShape = forward_shape(kDim);
  constexpr int kRows = kShape.groups * kGroupRows;
  const int lane = threadIdx.x % 32;
  typename Shared::Ring ring;
  typename Shared::Slots slots;

  StepEntry held{};
  bool holding = false;
  const auto publish = [&](const StepEntry& e) {
    if (lane == 0) {
      ptx::wait(shared.empty(ring.at), ring.parity ^ 1);
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared.entries + 16 * ring.at),
                   "r"(e.key_row), "r"(e.info), "r"(e.query_row), "r"(e.head_batch)
                   : "memory");
      ptx::arrive(shared.full(ring.at));
    }
    ring.advance();
  };
  const auto request = [&](const BitsRequest& r) {
    if (lane == 0) {
      ptx::wait(shared.bits_empty(slots.at), slots.parity ^ 1);
      const std::uint32_t to = shared.requests + sizeof(BitsRequest) * slots.at;
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(r.query_row),
                   "r"(r.query_index), "r"(r.rows), "r"(r.key_tile)
                   : "memory");
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to + 16), "r"(r.key_row),
                   "r"(r.key_index), "r"(r.columns), "r"(r.runs)
                   : "memory");
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + 32), "r"(r.head_batch) : "memory");
      ptx::arrive(shared.wanted(slots.at));
    }
    slots.advance();
  };
  // Rows that all take as long are dealt out in turns. Others are drawn, as late as hides the
  // drawing: when the entry before the last has been taken up.
  const auto next_tile = [&](int t) {
    if (!p.drawn) return t + static_cast<int>(gridDim.x);
    int drawn = 0;
    if (lane == 0) {
      typename Shared::Ring before = ring;
      before.back();
      before.back();
      ptx::wait(shared.empty(before.at), before.parity);
      drawn = static_cast<int>(gridDim.x + atomicAdd(p.ticket, 1U));
    }
    return __shfl_sync(0xFFFFFFFFU, drawn, 0);
  };

#pragma unroll 1
  for (int t = blockIdx.x; t < p.tiles; t = next_tile(t)) {
    const QueryBlock q(p, kRows, t);
    const int head_batch = q.head | q.batch << 16;
    if (!p.first && lane == 0) {
      const std::int64_t row = (static_cast<std::int64_t>(q.batch) * p.heads + q.head) *
                                   (p.query_counts[0] + p.query_counts[1]) +
                               q.row;
      ptx::prefetch_l2(p.acc + row * p.value_dim, q.rows * p.value_dim * 4);
    }
    int info = kFirst | q.rows << kRowsShift;
    unsigned started = 0;
#pragma unroll 1
    for (int run = 1; run >= 0; --run) {
      int begin = 0;
      int end = 0;
      if (p.key_counts[run] > 0) key_tiles<T, kShape.columns>(p, q, run, begin, end);
#pragma unroll 1
      for (int base = (end - 1) & ~31; base > begin - 32 && end > begin; base -= 32) {
        const int mine = base + lane;
        const unsigned found = begin <= mine && mine < end
                                   ? kinds<T, kShape.groups, kShape.columns>(p, q, run, mine)
                                   : 0;
        unsigned todo = __ballot_sync(0xFFFFFFFFU, found != 0);
#pragma unroll 1
        while (todo != 0) {
          const int from = 31 - __clz(static_cast<int>(todo));
          todo ^= 1U << from;
          const unsigned kind = __shfl_sync(0xFFFFFFFFU, found, from);
          const int index = (base + from) * kShape.columns;
          const int key_row = index + run * p.key_counts[0];
          // A group that sees nothing here but has seen something gets bits, all 0.
          constexpr unsigned kAll = (1U << kShape.groups) - 1;
          started |= kind & kAll;
          const int masked = static_cast<int>((kind >> 16 | (started & ~kind)) & kAll) * kMasked;
          const int now = kHasKeys | masked | static_cast<int>(~started & kAll) * kSkip;
          const int steps = held.info >> kStepsShift;
          if (holding && masked == 0 && (held.info & (kMaskedAny | kHasKeys | 7 * kSkip)) == now &&
              held.key_row - steps * kShape.columns == key_row && steps < kMostSteps) {
            held.info += kStep;
            continue;
          }
          if (holding) {
            held.info |= kMore;
            publish(held);
          }
          held = {key_row, info | now | kStep, q.row, head_batch};
          holding = true;
          info &= ~kFirst;
          if (masked != 0) {
            const std::int64_t before =
                run == 0 ? 0 : ceil_div(p.schedule.keys.positions.runs[0].count, kShape.columns);
            request({q.row,
                     q.index,
                     q.rows,
                     static_cast<int>(before) + base + from,
                     key_row,
                     index,
                     min(kShape.columns, p.key_counts[run] - index),
                     q.run | run << 1,
                     head_batch,
                     {}});
          }
        }
      }
    }
    publish(holding ? held : StepEntry{0, info, q.row, head_batch});
    holding = false;
  }
  publish({0, kEnd, 0, 0});
  request({});
}

/// By the warps that find bits: words of kColumns / 32 (rounded up to 4) per row, columns beyond
/// the tile and rows beyond the block 0.
template <class T, int kDim, int kThreads, class Shared>
RINGATTN_DEVICE void find_bits(const ForwardParameters<T>& p, const Shared& shared, int thread) {
  constexpr ForwardShape kShape = forward_shape(kDim);
  constexpr int kRows = kShape.groups * kGroupRows;
  typename Shared::Slots slots;
#pragma unroll 1
  for (;; slots.advance()) {
    ptx::wait(shared.wanted(slots.at), slots.parity);
    const std::uint32_t from = shared.requests + sizeof(BitsRequest) * slots.at;
    BitsRequest r;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.query_row), "=r"(r.query_index), "=r"(r.rows), "=r"(r.key_tile)
                 : "r"(from)
                 : "memory");
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.key_row), "=r"(r.key_index), "=r"(r.columns), "=r"(r.runs)
                 : "r"(from + 16)
                 : "memory");
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r.head_batch) : "r"(from + 32) : "memory");
    if (r.rows == 0) return;
    const std::uint32_t to = shared.bits + shared.bits_bytes * slots.at;
#pragma unroll 1
    for (int n = thread; n < kRows * 4; n += kThreads) {
      const int row = n / 4;
      const int first = n % 4 * 32;
      const int columns = min(r.columns - first, 32);
      std::uint32_t word = 0;
      if (row < r.rows && columns > 0) {
        if (p.banded) {
          const Band32 band = p.bands[r.runs & 1][r.runs >> 1];
          const int shift = r.query_index + row - r.key_index - first;
          word = bit_range(max(shift + band.begin, 0), min(shift + band.end, columns));
        } else {
          word = visible_word<true>(p.schedule, r.head_batch >> 16, r.head_batch & 0xFFFF,
                                    r.query_row + row, p.schedule.keys[r.key_tile], first, columns);
        }
      }
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + 4 * n), "r"(word) : "memory");
    }
    __syncwarp();
    if (thread % 32 == 0) ptx::arrive(shared.bits_full(slots.at));
  }
}

}  // namespace ringattn::cuda::sm90
