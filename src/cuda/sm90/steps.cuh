// SPDX-License-Identifier: Apache-2.0
// Which steps a block takes: one warp asks the schedule, ahead of everyone, and passes its answers
// through a ring in shared memory; others find the bits of masked tiles. Who computes only
// learns "another step", "masked", "done": masks are data. "Own" rows are those that a block keeps,
// "others" those that pass by: kKeys says that the others are keys, as in the forward pass;
// otherwise they are queries, of every head of the group in turn.
#pragma once

#include "cuda/sm90/parameters.h"
#include "cuda/sm90/ptx.cuh"

namespace ringattn::cuda::sm90 {

/// Steps as they lie in the ring: a block of own rows against neighbouring tiles of others that are
/// alike; keys late ones first, queries early ones first.
struct StepEntry {
  int other_row;   // of the shard, of the first step
  int info;        // below
  int own_row;     // of the shard
  int head_batch;  // query head | batch << 16
};
enum StepInfo : int {
  kMore = 1,       // another entry of these own rows follows
  kFirst = 2,      // the first one
  kHasOthers = 4,  // nothing to compute otherwise: these rows see nothing here
  kEnd = 8,        // there are no more rows
  kMasked = 16,    // << g: some pairs of warpgroup g are invisible
  kMaskedAny = 7 * kMasked,
  kSkip = 128,      // << g: of the forward: warpgroup g has not seen anything yet, nor here
  kRowsShift = 16,  // own rows of the block, 8 bits
  kStepsShift = 24,
  kStep = 1 << kStepsShift,
};
/// Steps of an entry at most: so many may still be to do when the next rows are chosen.
constexpr int kMostSteps = 4;
/// Threads that find the bits of masked tiles: for each of them a row of every warpgroup.
constexpr int kBitThreads = kGroupRows;

/// The rows and columns whose bits are wanted.
struct BitsRequest {
  static constexpr int kBytes = 48;  // in shared memory
  int own_row, own_index, rows;      // of the shard; within its run; 0: no more requests
  int other_tile, other_row, other_index, columns;
  int runs;  // own run | other run << 1
  int head_batch;
  int own_number;   // of the blocks of own rows with any steps, how many came before
  int step_number;  // of their steps
  unsigned flags;   // kIdsDecide, kPadded
};
constexpr unsigned kIdsDecide = 1U << 28;  // segment ids hide pairs that a band does not
constexpr unsigned kPadded = 1U << 29;     // some of the others are padding

/// Own rows [row, row + rows) of the shard, which begin at `index` of their run.
struct OwnBlock {
  int batch, head, run, index, row, rows;
  int place;  // among the blocks of its head, in the order in which they begin

  RINGATTN_DEVICE OwnBlock(const Traversal& p, int block_rows, int t) {
    const int blocks = p.own_blocks[0] + p.own_blocks[1];
    const int per_turn = p.heads_per_turn * blocks;
    const int turn = t / per_turn;
    const int in_turn = t - turn * per_turn;
    place = in_turn / p.heads_per_turn;
    const int both = turn * p.heads_per_turn + in_turn - place * p.heads_per_turn;
    batch = both / p.own_heads;
    head = both - batch * p.own_heads;
    set_rows(p, block_rows, place);
  }
  /// Another block of the same head.
  RINGATTN_DEVICE OwnBlock(const Traversal& p, int block_rows, int batch, int head, int place)
      : batch(batch), head(head), place(place) {
    set_rows(p, block_rows, place);
  }

 private:
  RINGATTN_DEVICE void set_rows(const Traversal& p, int block_rows, int place) {
    const int blocks = p.own_blocks[0] + p.own_blocks[1];
    const int block = p.late_first ? blocks - 1 - place : place;
    run = block < p.own_blocks[0] ? 0 : 1;
    const int in_run = block - run * p.own_blocks[0];
    const int shorter = p.short_blocks[run];
    index = in_run * block_rows - min(in_run, shorter) * kGroupRows;
    row = index + run * p.own_counts[0];
    rows = min(block_rows - (in_run < shorter ? kGroupRows : 0), p.own_counts[run] - index);
  }
};

/// Tiles before a run of a tiling.
template <int kSize>
RINGATTN_DEVICE int tiles_before(const Tiling& tiles, int run) {
  return run == 0 ? 0 : static_cast<int>(ceil_div(tiles.positions.runs[0].count, kSize));
}

/// The bits of a masked tile in shared memory: words of 32 columns, each of all own rows, the last
/// one as wide as the tile wants.
template <int kRows, int kColumns>
struct TileWords {
  static constexpr int kWords = (kColumns + 31) / 32;
  static constexpr int kBytes = kRows * kColumns / 8;
  static_assert(kColumns % 16 == 0 && kColumns <= 128);

  RINGATTN_DEVICE static void store(std::uint32_t to, int row, int n, std::uint32_t word) {
    to += 4 * kRows * n;
    if (half(n)) {
      ptx::store_half_word(to + 2 * row, word);
    } else {
      ptx::store_word(to + 4 * row, word);
    }
  }
  RINGATTN_DEVICE static uint4 load(std::uint32_t from, int row) {
    return {load(from, row, 0), load(from, row, 1), load(from, row, 2), load(from, row, 3)};
  }

 private:
  RINGATTN_DEVICE static constexpr bool half(int n) { return kColumns - 32 * n == 16; }
  RINGATTN_DEVICE static std::uint32_t load(std::uint32_t from, int row, int n) {
    if (n >= kWords) return 0;
    from += 4 * kRows * n;
    return half(n) ? ptx::load_half_word(from + 2 * row) : ptx::load_word(from + 4 * row);
  }
};

/// Addresses of the ring and of what belongs to it. kSlots: masks that may be under way at once,
/// their bits as Words has them.
template <int kRing, int kSlots, class Words>
struct StepShared {
  using Bits = Words;
  /// So many entries may wait to be taken up when the next rows are drawn.
  static constexpr int kLeft = kRing / 4;
  std::uint32_t entries, requests, bits;
  std::uint32_t barriers;  // full and empty of the ring; wanted, full and empty of the slots; asked

  RINGATTN_DEVICE std::uint32_t full(int i) const { return barriers + 8 * i; }
  RINGATTN_DEVICE std::uint32_t empty(int i) const { return barriers + 8 * (kRing + i); }
  RINGATTN_DEVICE std::uint32_t wanted(int s) const { return barriers + 8 * (2 * kRing + s); }
  RINGATTN_DEVICE std::uint32_t bits_full(int s) const {
    return barriers + 8 * (2 * kRing + kSlots + s);
  }
  RINGATTN_DEVICE std::uint32_t bits_empty(int s) const {
    return barriers + 8 * (2 * kRing + 2 * kSlots + s);
  }
  /// Of how many masked steps the copies have been asked for. Who clears padding waits for this
  /// before the copies' own barrier: a masked step may be several rounds of copies ahead, and a
  /// barrier only tells one round from the next.
  RINGATTN_DEVICE std::uint32_t asked() const { return barriers + 8 * (2 * kRing + 3 * kSlots); }
  static constexpr int kBarriers = 2 * kRing + 3 * kSlots + 1;
  RINGATTN_DEVICE std::uint32_t bits_of(int s) const { return bits + Words::kBytes * s; }

  /// By one thread. Entries are read by every warp of the groups that compute and by `others`: the
  /// thread that fetches is one.
  RINGATTN_DEVICE void init_barriers(int groups, int others) const {
    ptx::store_count(asked(), 0);
    for (int i = 0; i < kRing; ++i) {
      ptx::barrier_init(full(i), 1);
      ptx::barrier_init(empty(i), 4 * groups + others);
    }
    for (int i = 0; i < kSlots; ++i) {
      ptx::barrier_init(wanted(i), 1);
      ptx::barrier_init(bits_full(i), kBitThreads);
      ptx::barrier_init(bits_empty(i), 4 * groups);
    }
  }

  RINGATTN_DEVICE StepEntry entry(int i) const {
    const uint4 w = ptx::load_words(entries + 16 * i);
    return {static_cast<int>(w.x), static_cast<int>(w.y), static_cast<int>(w.z),
            static_cast<int>(w.w)};
  }
  RINGATTN_DEVICE int info(int i) const {
    return static_cast<int>(ptx::load_word(entries + 16 * i + 4));
  }
};

/// Where a layout has them.
template <class Layout>
RINGATTN_DEVICE typename Layout::Steps steps_at(std::uint32_t base) {
  typename Layout::Steps steps;
  steps.entries = base + Layout::kEntries;
  steps.requests = base + Layout::kRequests;
  steps.bits = base + Layout::kBits;
  steps.barriers = base + Layout::kBarriers;
  return steps;
}

/// By the thread that fetches: the copies of an entry have been asked for; `asked` counts the
/// masked ones.
template <class Shared>
RINGATTN_DEVICE void say_asked(const Shared& steps, std::uint32_t& asked, int info) {
  if ((info & kMaskedAny) != 0) ptx::store_count(steps.asked(), ++asked);
}

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

/// The kinds of one tile of others for the warpgroups of a block: bit g visited, bit 16 + g masked,
/// and the flags of a request for its bits; 0 if no one visits it.
template <bool kKeys, int kGroups, int kColumns, class P>
RINGATTN_DEVICE unsigned kinds(const P& p, const OwnBlock& own, int head, int other_run,
                               int tile_in_run) {
  unsigned result = 0;
  unsigned flags = 0;
  const int begin = tile_in_run * kColumns;
  const int end = min(begin + kColumns, p.other_counts[other_run]);
  SegmentBounds theirs;
  if (p.segmented) {
    const ShardSegments& others = kKeys ? p.schedule.key_segments : p.schedule.query_segments;
    theirs =
        others.bounds[own.batch * p.other_tiles[1] + other_run * p.other_tiles[0] + tile_in_run];
    if (theirs.padding) flags |= kPadded;
  }
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int rows = min(own.rows - g * kGroupRows, kGroupRows);
    if (rows <= 0) continue;
    TileKind kind = TileKind::kMasked;
    if (p.banded) {
      // Both ends of what a row sees move with the row.
      const Band32 band = p.bands[own.run][other_run];
      const int first = own.index + g * kGroupRows;
      const int last = first + rows - 1;
      if (first + band.begin >= end || last + band.end <= begin || band.begin >= band.end) {
        kind = TileKind::kSkip;
      } else if (last + band.begin <= begin && end <= first + band.end) {
        kind = TileKind::kFull;
      }
      if (p.segmented && kind != TileKind::kSkip) {
        const ShardSegments& mine = kKeys ? p.schedule.query_segments : p.schedule.key_segments;
        const int own_tile =
            own.batch * p.own_tiles[1] + own.run * p.own_tiles[0] + own.index / kGroupRows + g;
        const TileKind by_ids = classify(mine.bounds[own_tile], theirs);
        if (by_ids != TileKind::kFull) flags |= kIdsDecide;
        kind = both(kind, by_ids);
      }
    } else {
      const PairSchedule& s = p.schedule;
      const int mine = tiles_before<kGroupRows>(kKeys ? s.queries : s.keys, own.run) +
                       own.index / kGroupRows + g;
      const int other = tiles_before<kColumns>(kKeys ? s.keys : s.queries, other_run) + tile_in_run;
      kind = kKeys ? s.kind(own.batch, head, mine, other) : s.kind(own.batch, head, other, mine);
    }
    if (kind == TileKind::kSkip) continue;
    // Queries that do not exist hurt nobody; keys that do not exist must get no weight.
    const bool masked =
        kind == TileKind::kMasked || end - begin < kColumns || (!kKeys && rows < kGroupRows);
    result |= 1U << g | (masked ? 1U << (16 + g) : 0);
  }
  return result == 0 ? 0 : result | flags;
}

/// Tiles of a run of others that the mask lets a block visit.
template <bool kKeys, int kColumns, class P>
RINGATTN_DEVICE void masked_tiles(const P& p, const OwnBlock& own, int other_run, int& begin,
                                  int& end) {
  const int count = p.other_counts[other_run];
  if (p.banded) {
    const Band32 band = p.bands[own.run][other_run];
    begin = max(own.index + band.begin, 0) / kColumns;
    end = (min(max(own.index + own.rows - 1 + band.end, 0), count) + kColumns - 1) / kColumns;
    return;
  }
  const Tiling& mine = kKeys ? p.schedule.queries : p.schedule.keys;
  const Tiling& others = kKeys ? p.schedule.keys : p.schedule.queries;
  const int before = tiles_before<kColumns>(others, other_run);
  const int first = tiles_before<kGroupRows>(mine, own.run) + own.index / kGroupRows;
  Range span = mine[first].span;
  for (int g = 1; g * kGroupRows < own.rows; ++g) {
    const Range next = mine[first + g].span;
    span = {min(span.begin, next.begin), max(span.end, next.end)};
  }
  const TileRanges seen =
      visit(kKeys ? p.schedule.mask : p.schedule.mask.transposed(), span, others);
  begin = static_cast<int>(max(seen.visited[other_run].begin - before, std::int64_t{0}));
  end = static_cast<int>(max(seen.visited[other_run].end - before, std::int64_t{0}));
}

/// Those of them that may share a segment with it.
template <bool kKeys, int kColumns, class P>
RINGATTN_DEVICE void other_tiles(const P& p, const OwnBlock& own, int other_run, int& begin,
                                 int& end) {
  masked_tiles<kKeys, kColumns>(p, own, other_run, begin, end);
  if (p.seen == nullptr) return;
  const TileSpan* seen =
      p.seen + own.batch * p.own_tiles[1] + own.run * p.own_tiles[0] + own.index / kGroupRows;
  TileSpan any = seen[0];
  for (int g = 1; g * kGroupRows < own.rows; ++g) {
    any = {min(any.begin, seen[g].begin), max(any.end, seen[g].end)};
  }
  const int before = other_run * p.other_tiles[0];
  begin = max(begin, any.begin - before);
  end = min(end, any.end - before);
}

/// The state of earlier steps of a forward ring, on its way before it is wanted.
template <class T>
RINGATTN_DEVICE void prefetch_state(const ForwardParameters<T>& p, const OwnBlock& own) {
  if (p.first) return;
  const std::int64_t head = static_cast<std::int64_t>(own.batch) * p.heads + own.head;
  const std::int64_t tile =
      head * p.own_tiles[1] + own.run * p.own_tiles[0] + own.index / kGroupRows;
  const int tile_floats = kGroupRows * p.acc_tiles.dim;
  ptx::prefetch_l2(p.acc + tile * tile_floats,
                   (own.rows + kGroupRows - 1) / kGroupRows * tile_floats * 4);
  const std::int64_t row = head * (p.own_counts[0] + p.own_counts[1]) + own.row;
  // In pieces of 16 bytes, as p.max and p.sum lie.
  const std::int64_t first = row & ~std::int64_t{3};
  const int bytes = (static_cast<int>(row - first) + own.rows + 3) / 4 * 16;
  ptx::prefetch_l2(p.max + first, bytes);
  ptx::prefetch_l2(p.sum + first, bytes);
}

template <class T>
RINGATTN_DEVICE void prefetch_state(const BackwardParameters<T>&, const OwnBlock&) {}

/// By one warp: every step of this block of threads. kTogether: every group takes part in every
/// step of its block, whether it sees anything there or not.
template <bool kKeys, int kGroups, int kColumns, bool kTogether, class P, class Shared>
RINGATTN_DEVICE void produce_steps(const P& p, const Shared& shared) {
  constexpr int kRows = kGroups * kGroupRows;
  constexpr unsigned kAll = (1U << kGroups) - 1;
  const int lane = threadIdx.x % 32;
  typename Shared::Ring ring;
  typename Shared::Slots slots;

  StepEntry held{};
  bool holding = false;
  const auto publish = [&](const StepEntry& e) {
    if (lane == 0) {
      ptx::wait_asleep(shared.empty(ring.at), ring.parity ^ 1);
      ptx::store_words(shared.entries + 16 * ring.at, e.other_row, e.info, e.own_row, e.head_batch);
      ptx::arrive(shared.full(ring.at));
    }
    ring.advance();
  };
  const auto request = [&](const BitsRequest& r) {
    if (lane == 0) {
      ptx::wait_asleep(shared.bits_empty(slots.at), slots.parity ^ 1);
      const std::uint32_t to = shared.requests + BitsRequest::kBytes * slots.at;
      ptx::store_words(to, r.own_row, r.own_index, r.rows, r.other_tile);
      ptx::store_words(to + 16, r.other_row, r.other_index, r.columns, r.runs);
      ptx::store_words(to + 32, r.head_batch, r.own_number, r.step_number, r.flags);
      ptx::arrive(shared.wanted(slots.at));
    }
    slots.advance();
  };
  // Rows that all take as long are dealt out in turns. Others are drawn, as late as hides the
  // drawing: when all entries but the last few have been taken up. If blocks wait for others, even
  // the first rows are drawn: whoever is waited for must be running.
  const auto next_tile = [&](int t) {
    if (!p.drawn) return t + static_cast<int>(gridDim.x);
    int drawn = 0;
    if (lane == 0 && t < 0) {
      drawn = static_cast<int>(atomicAdd(p.ticket, 1U));
    } else if (lane == 0) {
      typename Shared::Ring before = ring;
#pragma unroll
      for (int i = 0; i <= Shared::kLeft; ++i) before.back();
      ptx::wait_asleep(shared.empty(before.at), before.parity);
      drawn = static_cast<int>((p.in_order ? 0 : gridDim.x) + atomicAdd(p.ticket, 1U));
    }
    return __shfl_sync(0xFFFFFFFFU, drawn, 0);
  };

  int own_number = -1;
  int step_number = -1;
#pragma unroll 1
  for (int t = p.in_order ? next_tile(-1) : blockIdx.x; t < p.tiles; t = next_tile(t)) {
    const OwnBlock own(p, kRows, t);
    if (lane == 0) prefetch_state(p, own);
    int info = kFirst | own.rows << kRowsShift;
    unsigned started = kTogether ? kAll : 0;
    const int heads = kKeys ? 1 : p.group;
#pragma unroll 1
    for (int turn = kKeys ? 1 : 0; kKeys ? turn >= 0 : turn < 2 * heads; turn += kKeys ? -1 : 1) {
      const int head = kKeys ? own.head : own.head * heads + turn / 2;
      const int head_batch = head | own.batch << 16;
      const int run = kKeys ? turn : turn % 2;
      int begin = 0;
      int end = 0;
      if (p.other_counts[run] > 0) other_tiles<kKeys, kColumns>(p, own, run, begin, end);
      // Where all blocks see the same queries, each begins elsewhere: additions to the same sums at
      // the same time would wait for each other.
      const int count = end - begin;
      const int turned =
          kKeys || p.drawn || p.in_order
              ? 0
              : static_cast<int>(static_cast<std::int64_t>(count) * (own.index / kRows) /
                                 max(p.own_blocks[own.run], 1));
      // Keys backwards by number, queries forwards from the first one, 32 at a time.
#pragma unroll 1
      for (int base = kKeys ? (end - 1) & ~31 : 0;
           kKeys ? base > begin - 32 && end > begin : base < count; base += kKeys ? -32 : 32) {
        const auto tile_of = [&](int i) {
          if (kKeys) return base + i;
          const int at = base + i + turned;
          return begin + at - (at >= count ? count : 0);
        };
        const int mine = tile_of(lane);
        const bool exists = kKeys ? begin <= mine && mine < end : base + lane < count;
        const unsigned found =
            exists ? kinds<kKeys, kGroups, kColumns>(p, own, head, run, mine) : 0;
        unsigned visited = __ballot_sync(0xFFFFFFFFU, found != 0);
#pragma unroll 1
        while (visited != 0) {
          const int from =
              kKeys ? 31 - __clz(static_cast<int>(visited)) : __ffs(static_cast<int>(visited)) - 1;
          visited ^= 1U << from;
          const unsigned kind = __shfl_sync(0xFFFFFFFFU, found, from);
          const int tile = tile_of(from);
          const int index = tile * kColumns;
          const int other_row = index + run * p.other_counts[0];
          // A group that sees nothing here but has seen something gets bits, all 0.
          started |= kind & kAll;
          const int masked = static_cast<int>((kind >> 16 | (started & ~kind)) & kAll) * kMasked;
          const int now = kHasOthers | masked | static_cast<int>(~started & kAll) * kSkip;
          ++step_number;
          const int steps = held.info >> kStepsShift;
          const int next_row = held.other_row + (kKeys ? -steps : steps) * kColumns;
          if (holding && masked == 0 &&
              (held.info & (kMaskedAny | kHasOthers | 7 * kSkip)) == now && next_row == other_row &&
              (kKeys || held.head_batch == head_batch) && steps < kMostSteps) {
            held.info += kStep;
            continue;
          }
          if (holding) {
            held.info |= kMore;
            publish(held);
          }
          held = {other_row, info | now | kStep, own.row, head_batch};
          holding = true;
          own_number += info & kFirst ? 1 : 0;
          info &= ~kFirst;
          if (masked != 0) {
            request(
                {own.row, own.index, own.rows,
                 tiles_before<kColumns>(kKeys ? p.schedule.keys : p.schedule.queries, run) + tile,
                 other_row, index, min(kColumns, p.other_counts[run] - index), own.run | run << 1,
                 head_batch, own_number, step_number, kind & (kIdsDecide | kPadded)});
          }
        }
      }
    }
    const int first_head = kKeys ? own.head : own.head * heads;
    publish(holding ? held : StepEntry{0, info, own.row, first_head | own.batch << 16});
    holding = false;
  }
  publish({0, kEnd, 0, 0});
  request({});
}

/// The tile of queries that begins at a row of the shard, whose first run has `first_run` rows, of
/// all heads' tiles.
template <class T, int kQueries>
RINGATTN_DEVICE int query_tile(const BackwardParameters<T>& p, int first_run, int row,
                               int head_batch) {
  const int late = row - first_run;
  const int tile = late >= 0 ? p.first_run_tiles + late / kQueries : row / kQueries;
  return ((head_batch >> 16) * p.heads + (head_batch & 0xFFFF)) * p.query_tiles + tile;
}

}  // namespace ringattn::cuda::sm90
