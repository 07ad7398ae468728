// SPDX-License-Identifier: Apache-2.0
// The warps of a Hopper block that do not compute, on host threads: the headers of src/cuda/sm90,
// with device/cuda/sm90/ptx.cuh in place of the instructions. Whoever computes is played by threads
// that follow the same barriers and look at every row that they would multiply: it must be the one
// that the step is about, cleared if it is padding, and the bits of masked tiles must be the
// schedule's. Numbers are the table's affair (tests/cuda), on a GPU.
// Before all others: it says what __device__ is.
#include "cuda/sm90/ptx.cuh"

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "cuda/sm90/add_queries.cuh"
#include "cuda/sm90/fetch.cuh"
#include "cuda/sm90/fetch_backward.cuh"
#include "cuda/sm90/find_bits.cuh"
#include "cuda/sm90/launch.h"
#include "cuda/sm90/padding.cuh"

namespace ringattn::cuda::sm90 {
namespace {

using T = __nv_bfloat16;
constexpr int kHeads = 2;  // of queries, of one head of keys
constexpr std::uint32_t kQuery = 1, kKey = 2, kValue = 3, kDout = 4;

/// Documents of any length, some with padding behind them; or one, without ids.
struct Packed {
  int rows;
  std::vector<std::int32_t> ids;
  std::vector<SegmentBounds> query_bounds, key_bounds;
  PairSchedule schedule;

  Packed(int seed, int length, bool causal, bool packed, int query_tile, int key_tile)
      : rows(length) {
    std::mt19937 random(static_cast<unsigned>(seed));
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    ids.assign(static_cast<std::size_t>(rows), packed ? -1 : 0);
    int id = 0;
    for (int i = packed ? 0 : rows; i < rows; ++id) {
      for (int n = 1 + below(rows / 2); n > 0 && i < rows; --n)
        ids[static_cast<std::size_t>(i++)] = id;
      if (below(2) != 0) i += below(150);
    }
    if (causal) schedule.mask.right = 0;
    const auto side = [&](Tiling& tiling, ShardSegments& segments,
                          std::vector<SegmentBounds>& bounds, int tile) {
      tiling.positions.runs[0] = {0, rows};
      tiling.positions.runs[1] = {0, 0};
      tiling.size = tile;
      for (int i = 0; i < rows; i += tile) {
        bounds.push_back(bounds_of(ids.data() + i, std::min(tile, rows - i)));
      }
      if (packed) segments = {ids.data(), bounds.data()};
    };
    side(schedule.queries, schedule.query_segments, query_bounds, query_tile);
    side(schedule.keys, schedule.key_segments, key_bounds, key_tile);
  }
  bool padding(int row) const { return row < rows && ids[static_cast<std::size_t>(row)] < 0; }
};

/// A block and its threads; threads are started once everything is there.
class Threads {
 public:
  explicit Threads(int seed) : seed_(static_cast<unsigned>(seed)) { host::block = &block_; }

  void add(int thread, host::Warp* warp, const char* role, std::function<void()> work) {
    parts_.push_back([this, thread, warp, role, work = std::move(work)] {
      threadIdx.x = thread;
      gridDim.x = 1;
      host::warp = warp;
      host::role = role;
      host::random.seed(seed_ * 1000U + static_cast<unsigned>(thread));
      work();
    });
  }
  void run() {
    std::thread copies([this] {
      host::random.seed(seed_);
      host::copy();
    });
    std::vector<std::thread> threads;
    threads.reserve(parts_.size());
    for (const auto& part : parts_) threads.emplace_back(part);
    for (std::thread& t : threads) t.join();
    {
      const std::lock_guard lock(block_.mutex);
      block_.over = true;
      block_.changed.notify_all();
    }
    copies.join();
  }

 private:
  unsigned seed_;
  host::Block block_;
  std::vector<std::function<void()>> parts_;
};

/// Rows of a tile where its copies put them: `kind`'s of a head from `first` on.
void expect_rows(const Packed& in, std::uint32_t at, int rows, int panels, std::uint32_t kind,
                 int head, int first, bool cleared) {
  const std::lock_guard lock(host::block->mutex);
  for (int n = 0; n < panels * rows; ++n) {
    const int row = first + n % rows;
    const bool there = row < in.rows && !(cleared && in.padding(row));
    const std::uint32_t want = there ? host::mark(kind, 0, head, row) : 0;
    for (std::uint32_t byte = 0; byte < 128; byte += 16) {
      if (host::word(at + 128 * static_cast<std::uint32_t>(n) + byte) != want) {
        host::fail(there ? "not the row of this step, or cleared" : "padding was not cleared", kind,
                   row);
      }
    }
  }
}

/// How a warpgroup that computes, played by one thread, follows the steps.
template <class Layout>
struct Follower {
  using Steps = typename Layout::Steps;
  static constexpr bool kKeys = Layout::kOthersAreKeys;
  const Packed& in;
  Steps steps;
  int group;
  typename Steps::Ring ring;
  typename Steps::Slots slots;

  static void of_four_warps(std::uint32_t barrier) {
    for (int i = 0; i < 4; ++i) ptx::arrive(barrier);
  }
  StepEntry take() {
    ptx::wait(steps.full(ring.at), ring.parity);
    const StepEntry e = steps.entry(ring.at);
    of_four_warps(steps.empty(ring.at));
    ring.advance();
    return e;
  }
  /// The bits of a masked step, if there is something for this group.
  void bits(const StepEntry& block, int info, int other_row) {
    if ((info & kMaskedAny) == 0) return;
    ptx::wait(steps.bits_full(slots.at), slots.parity);
    if ((info & kMasked << group) != 0) expect_bits(block, other_row);
    of_four_warps(steps.bits_empty(slots.at));
    slots.advance();
  }

 private:
  void expect_bits(const StepEntry& block, int other_row) const {
    for (int r = 0; r < kGroupRows; ++r) {
      const int in_block = group * kGroupRows + r;
      const uint4 w = Steps::Bits::load(steps.bits_of(slots.at), in_block);
      const std::uint32_t words[] = {w.x, w.y, w.z, w.w};
      for (int c = 0; c < Layout::kOthers; ++c) {
        const int own = block.own_row + in_block;
        const int other = other_row + c;
        const bool exists = in_block < (block.info >> kRowsShift & 0xFF) && other < in.rows;
        const bool want =
            exists && in.schedule.visible(0, 0, kKeys ? own : other, kKeys ? other : own);
        if ((words[c / 32] >> (c % 32) & 1U) != (want ? 1U : 0U)) {
          host::fail("a wrong bit", own, other);
        }
      }
    }
  }
};
template <int kDim>
struct Forward : ForwardLayout<kDim> {
  static constexpr bool kOthersAreKeys = true;
  static constexpr int kOthers = ForwardLayout<kDim>::kShape.columns;
};
template <int kDim>
struct Backward : BackwardLayout<kDim> {
  static constexpr bool kOthersAreKeys = false;
  static constexpr int kOthers = BackwardLayout<kDim>::kShape.queries;
};

template <class P>
void set_up(P& p, const Packed& in, Pass pass, int groups, bool in_order, unsigned& ticket) {
  p.schedule = in.schedule;
  p.batch = 1;
  p.heads = kHeads;
  p.group = kHeads;
  p.ticket = &ticket;
  static_cast<Traversal&>(p) =
      traverse(in.schedule, 1, kHeads, kHeads, 256, pass, groups, in_order);
}

CUtensorMap map_of(std::uint32_t kind, int rows, int total) {
  CUtensorMap map{};
  const host::Map how{kind, rows, total};
  std::memcpy(&map, &how, sizeof how);
  return map;
}

/// What a warpgroup of the forward does, with values a step behind.
template <int kDim>
void follow_forward(const Packed& in, const typename ForwardLayout<kDim>::Steps& steps, int group) {
  using Layout = Forward<kDim>;
  constexpr int kStages = Layout::kShape.stages;
  constexpr int kColumns = Layout::kShape.columns;
  const auto barrier = [&](int i) { return static_cast<std::uint32_t>(Layout::kBarriers + 8 * i); };
  Follower<Layout> reader{in, steps, group, {}, {}};
  Place<kStages> key;
  Place<kStages> value;
  unsigned query_parity = 0;
  for (StepEntry block = reader.take(); (block.info & kEnd) == 0;) {
    StepEntry e = block;
    const int head = e.head_batch & 0xFFFF;
    int held_row = -1;
    bool held_masked = false;
    bool seen = false;
    const auto wait_value = [&] {
      ptx::wait(barrier(Layout::kValueFull + value.at), value.parity);
    };
    const auto leave_value = [&] {
      ptx::arrive(barrier(Layout::kValueEmpty + value.at));
      value.advance();
    };
    const auto leave_key = [&] {
      ptx::arrive(barrier(Layout::kKeyEmpty + key.at));
      key.advance();
    };
    const auto gather = [&] {
      wait_value();
      expect_rows(in, static_cast<std::uint32_t>(Layout::kValues + value.at * Layout::kTileBytes),
                  kColumns, Layout::kPanels, kValue, head / kHeads, held_row, held_masked);
      leave_value();
    };
    const auto see_query = [&] {
      if (!seen) ptx::wait(barrier(Layout::kQueryFull), query_parity);
      seen = true;
    };
    for (bool more = (e.info & kHasOthers) != 0; more;) {
      more = (e.info & kMore) != 0;
      for (int i = 0; i < e.info >> kStepsShift; ++i) {
        const int row = e.other_row - i * kColumns;
        const bool skip = (e.info & kSkip << group) != 0;
        if (!skip && !seen) {
          see_query();
          expect_rows(in, 0, Layout::kRows, Layout::kPanels, kQuery, head, block.own_row, false);
        }
        ptx::wait(barrier(Layout::kKeyFull + key.at), key.parity);
        expect_rows(in, static_cast<std::uint32_t>(Layout::kKeys + key.at * Layout::kTileBytes),
                    kColumns, Layout::kPanels, kKey, head / kHeads, row, false);
        if (skip) {
          reader.bits(block, e.info, row);
          wait_value();
          leave_key();
          leave_value();
          continue;
        }
        if (held_row >= 0) wait_value();
        leave_key();
        reader.bits(block, e.info, row);
        if (held_row >= 0) gather();
        held_row = row;
        held_masked = (e.info & kMaskedAny) != 0;
      }
      if (more) e = reader.take();
    }
    if ((block.info & kHasOthers) != 0) {
      see_query();
      Follower<Layout>::of_four_warps(barrier(Layout::kQueryEmpty));
      query_parity ^= 1U;
      if (held_row >= 0) gather();
    }
    block = reader.take();
  }
}

template <int kDim>
void run_forward(int seed, int rows, bool causal) {
  using Layout = ForwardLayout<kDim>;
  constexpr ForwardShape kShape = Layout::kShape;
  const Packed in(seed, rows, causal, true, kGroupRows, kShape.columns);
  unsigned ticket = 0;
  ForwardParameters<T> p;
  set_up(p, in, Pass::kForward, kShape.groups, false, ticket);
  const CUtensorMap query = map_of(kQuery, Layout::kRows, rows);
  const CUtensorMap key = map_of(kKey, kShape.columns, rows);
  const CUtensorMap value = map_of(kValue, kShape.columns, rows);

  Threads threads(seed);
  const auto steps = steps_at<Layout>(0);
  Layout::init_barriers(0);
  host::Warp warps[3];
  threads.add(0, nullptr, "fetch", [&] { fetch<kDim>(0, steps, kHeads, &query, &key, &value); });
  for (int i = 32; i < 64; ++i) {
    threads.add(i, &warps[0], "steps",
                [&] { produce_steps<true, kShape.groups, kShape.columns, false>(p, steps); });
  }
  for (int i = 64; i < 128; ++i) {
    threads.add(i, &warps[i / 32 - 1], "bits", [&, i] {
      find_bits<true, kShape.groups>(p, steps, i - 64,
                                     [&](const BitsRequest& r, const auto& until_asked) {
                                       clear_values<kDim>(p, 0, r, until_asked, i - 64);
                                     });
    });
  }
  for (int g = 0; g < kShape.groups; ++g) {
    threads.add(128 * (g + 1), nullptr, "computes", [&, g] { follow_forward<kDim>(in, steps, g); });
  }
  threads.run();
}

/// A part of a tile of queries, the group's, among those of all heads.
template <class Layout>
int part_of(const Packed& in, int head, int tile, int group) {
  const auto tiles = static_cast<int>(in.schedule.queries.count());
  return (head * tiles + tile) * Layout::kShape.groups + group;
}

/// What a warpgroup of the backward does. Its gradients of queries are 1 and the number of the
/// part.
template <int kDim>
void follow_backward(const Packed& in, const typename BackwardLayout<kDim>::Steps& steps,
                     int group) {
  using Layout = Backward<kDim>;
  constexpr int kQueries = Layout::kShape.queries;
  const auto barrier = [&](int i) { return static_cast<std::uint32_t>(Layout::kBarriers + 8 * i); };
  Follower<Layout> reader{in, steps, group, {}, {}};
  Place<Layout::kShape.query_stages> query;
  Place<Layout::kShape.dout_stages> dout;
  unsigned own_parity = 0;
  unsigned turn = 0;
  const auto hand_over = [&](int part) {
    ptx::wait(barrier(Layout::kDqueryEmpty + group), turn ^ 1U);
    ptx::store_shared(static_cast<std::uint32_t>(Layout::kDquery + group * Layout::kPartBytes), 1,
                      static_cast<float>(part), 0, 0);
    Follower<Layout>::of_four_warps(
        barrier(Layout::kDqueryFull + static_cast<int>(turn) * Layout::kShape.groups + group));
    turn ^= 1U;
  };
  for (StepEntry block = reader.take(); (block.info & kEnd) == 0; block = reader.take()) {
    if ((block.info & kHasOthers) == 0) continue;
    ptx::wait(barrier(Layout::kKeyFull), own_parity);
    ptx::wait(barrier(Layout::kValueFull), own_parity);
    own_parity ^= 1U;
    StepEntry e = block;
    for (bool more = true; more;) {
      more = (e.info & kMore) != 0;
      const bool masked = (e.info & kMaskedAny) != 0;
      const int head = e.head_batch & 0xFFFF;
      for (int i = 0; i < e.info >> kStepsShift; ++i) {
        const int row = e.other_row + i * kQueries;
        ptx::wait(barrier(Layout::kDoutFull + dout.at), dout.parity);
        ptx::wait(barrier(Layout::kQueryFull + query.at), query.parity);
        reader.bits(block, e.info, row);
        const auto own = [&](int at, std::uint32_t kind, bool cleared) {
          expect_rows(in, static_cast<std::uint32_t>(at), Layout::kRows, Layout::kPanels, kind,
                      head / kHeads, block.own_row, cleared);
        };
        if (masked) own(Layout::kKey, kKey, true);
        own(Layout::kValue, kValue, false);
        const auto other = [&](int at, std::uint32_t kind) {
          expect_rows(in, static_cast<std::uint32_t>(at), kQueries, Layout::kPanels, kind, head,
                      row, masked);
        };
        other(Layout::kQuery + query.at * Layout::kQueryBytes, kQuery);
        other(Layout::kDout + dout.at * Layout::kQueryBytes, kDout);
        hand_over(part_of<Layout>(in, head, row / kQueries, group));
        Follower<Layout>::of_four_warps(barrier(Layout::kDoutEmpty + dout.at));
        Follower<Layout>::of_four_warps(barrier(Layout::kQueryEmpty + query.at));
        dout.advance();
        query.advance();
      }
      if (more) e = reader.take();
    }
    Follower<Layout>::of_four_warps(barrier(Layout::kValueEmpty));
    Follower<Layout>::of_four_warps(barrier(Layout::kKeyEmpty));
  }
}

/// What lies where sums begin: no sum of theirs.
constexpr float kNoSum = 1e6F;

/// Every block that sees a tile of queries has added to its parts, once. `begin`: sums began with
/// this kernel, on kNoSum instead of 0. `added`, if looked at, counts blocks where they have an
/// order, and says elsewhere which parts are there.
template <class Layout>
void expect_sums(const Packed& in, const std::vector<float>& sums, bool begin, bool in_order,
                 const std::vector<unsigned>* added) {
  constexpr int kGroups = Layout::kShape.groups;
  const auto keys = static_cast<int>(in.schedule.keys.count());
  for (int head = 0; head < kHeads; ++head) {
    for (int tile = 0; tile < in.schedule.queries.count(); ++tile) {
      int want = 0;
      for (int first = 0; first < keys; first += kGroups) {
        bool sees = false;
        for (int k = first; k < std::min(first + kGroups, keys); ++k) {
          sees = sees || in.schedule.kind(0, head, tile, k) != TileKind::kSkip;
        }
        want += sees ? 1 : 0;
      }
      for (int g = 0; g < kGroups; ++g) {
        const int part = part_of<Layout>(in, head, tile, g);
        const float* sum = sums.data() + static_cast<std::ptrdiff_t>(part) * QueryTiles::kPart;
        const float untouched = begin ? kNoSum : 0.0F;
        EXPECT_EQ(sum[0], want == 0 ? untouched : static_cast<float>(want))
            << "head " << head << ", tile " << tile;
        EXPECT_EQ(sum[1], want == 0 ? untouched : static_cast<float>(part));
        if (added != nullptr) {
          const int told = in_order || want == 0 ? want : static_cast<int>(kThere);
          EXPECT_EQ((*added)[static_cast<std::size_t>(part)], static_cast<unsigned>(told));
        }
      }
    }
  }
}

template <int kDim>
void run_backward(int seed, int rows, bool causal, bool packed, bool in_order) {
  using Layout = BackwardLayout<kDim>;
  constexpr BackwardShape kShape = Layout::kShape;
  const Packed in(seed, rows, causal, packed, kShape.queries, kGroupRows);
  unsigned ticket = 0;
  BackwardParameters<T> p;
  set_up(p, in, Pass::kBackward, kShape.groups, in_order, ticket);
  p.query_tiles = static_cast<int>(in.schedule.queries.count());
  p.first_run_tiles = p.query_tiles;
  const int parts = part_of<Layout>(in, kHeads, 0, 0);
  const bool begin = in_order || seed != 1;  // else steps before this one have cleared them
  std::vector<float> sums(static_cast<std::size_t>(parts) * QueryTiles::kPart,
                          begin ? kNoSum : 0.0F);
  std::vector<unsigned> added(static_cast<std::size_t>(parts));
  p.dquery_sum = sums.data();
  p.added = added.data();
  p.stores_first = begin;
  const CUtensorMap query = map_of(kQuery, kShape.queries, rows);
  const CUtensorMap dout = map_of(kDout, kShape.queries, rows);
  const CUtensorMap key = map_of(kKey, Layout::kRows, rows);
  const CUtensorMap value = map_of(kValue, Layout::kRows, rows);

  Threads threads(seed);
  const auto steps = steps_at<Layout>(0);
  Layout::init_barriers(0);
  host::Warp warps[3 + Layout::kAdders];
  threads.add(0, nullptr, "fetch",
              [&] { fetch_backward<T, kDim>(p, 0, steps, &query, &dout, &key, &value); });
  for (int i = 32; i < 64; ++i) {
    threads.add(i, &warps[0], "steps",
                [&] { produce_steps<false, kShape.groups, kShape.queries, true>(p, steps); });
  }
  for (int i = 64; i < 128; ++i) {
    threads.add(i, &warps[i / 32 - 1], "bits", [&, i] {
      int cleared = -1;
      find_bits<false, kShape.groups>(p, steps, i - 64,
                                      [&](const BitsRequest& r, const auto& until_asked) {
                                        clear_step<T, kDim>(p, 0, r, until_asked, i - 64, cleared);
                                      });
    });
  }
  for (int g = 0; g < kShape.groups; ++g) {
    threads.add(128 * (g + 1), nullptr, "computes",
                [&, g] { follow_backward<kDim>(in, steps, g); });
  }
  for (int i = 0; i < 32 * Layout::kAdders; ++i) {
    threads.add(128 * (1 + kShape.groups) + i, &warps[3 + i / 32], "adds",
                [&, i] { add_queries<T, kDim>(p, 0, steps, i / 32); });
  }
  threads.run();

  expect_sums<Layout>(in, sums, begin, in_order, begin ? &added : nullptr);
}

struct Passing {
  const char* name;
  std::function<void(int seed, int rows)> run;

  friend std::ostream& operator<<(std::ostream& out, const Passing& r) { return out << r.name; }
};
template <int kDim>
Passing forward(const char* name, bool causal) {
  return {name, [=](int seed, int rows) { run_forward<kDim>(seed, rows, causal); }};
}
template <int kDim>
Passing backward(const char* name, bool causal, bool in_order = false, bool packed = true) {
  return {name,
          [=](int seed, int rows) { run_backward<kDim>(seed, rows, causal, packed, in_order); }};
}
class CudaBlock : public testing::TestWithParam<Passing> {};

TEST_P(CudaBlock, EveryStepFindsItsRowsAndBits) {
  // A failure of a thread ends the process: those of a block cannot be told to stop.
  for (int seed : {1, 5}) GetParam().run(seed, 1000 + 200 * seed);
}

INSTANTIATE_TEST_SUITE_P(
    Packed, CudaBlock,
    testing::Values(forward<64>("Forward64", false), forward<128>("Forward128", false),
                    forward<128>("Forward128Causal", true), forward<256>("Forward256", false),
                    forward<256>("Forward256Causal", true), backward<64>("Backward64", false),
                    backward<128>("Backward128", false), backward<128>("Backward128Causal", true),
                    backward<64>("Backward64InOrder", false, true),
                    backward<128>("Backward128CausalInOrder", true, true),
                    backward<128>("Backward128CausalInOrderWithoutIds", true, true, false)),
    [](const testing::TestParamInfo<Passing>& p) { return std::string(p.param.name); });

}  // namespace
}  // namespace ringattn::cuda::sm90
