// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/launch.h"

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "cuda/check.h"
#include "cuda/device_memory.h"
#include "cuda/sm90/forward.h"

namespace ringattn::cuda::sm90 {
namespace {

/// Others that stay in the 50 MB of L2 while the blocks of their heads pass by.
constexpr std::int64_t kResidentBytes = std::int64_t{32} << 20;

int clamp_row(std::int64_t row) {
  return static_cast<int>(std::clamp<std::int64_t>(row, -2 * kMaxRows, 2 * kMaxRows));
}

/// How many heads take turns: as many as find the rows that pass by in L2, and a divisor of all.
int heads_per_turn(std::int64_t all, std::int64_t bytes_per_head) {
  std::int64_t n =
      std::clamp<std::int64_t>(kResidentBytes / std::max<std::int64_t>(bytes_per_head, 1), 1, all);
  while (all % n != 0) --n;
  return static_cast<int>(n);
}

/// RINGATTN_CUDA_KERNELS=portable: no kernel of one architecture, so that tests and benches can
/// reach the portable ones on any GPU.
bool only_portable() {
  static const bool only = [] {
    const char* kernels = std::getenv("RINGATTN_CUDA_KERNELS");
    return kernels != nullptr && std::string_view(kernels) == "portable";
  }();
  return only;
}

}  // namespace

Traversal traverse(const PairSchedule& s, int batch, int heads, int group, std::int64_t row_bytes,
                   Pass pass, int groups, bool in_order) {
  const bool forward = pass == Pass::kForward;
  const Positions& queries = s.queries.positions;
  const Positions& keys = s.keys.positions;
  const Positions& own = forward ? queries : keys;
  const Positions& others = forward ? keys : queries;
  Traversal p;
  p.banded = !s.bitmap.present() && s.mask.chunk == 0 && queries.list == nullptr &&
             keys.list == nullptr && queries.stride == keys.stride;
  p.segmented = s.query_segments.ids != nullptr;
  for (int i = 0; i < 2; ++i) {
    p.own_counts[i] = static_cast<int>(own.runs[i].count);
    p.other_counts[i] = static_cast<int>(others.runs[i].count);
    p.own_blocks[i] = static_cast<int>(ceil_div(p.own_counts[i], groups * kGroupRows));
    // Rather a few blocks of fewer warpgroups than one of a single one: it would find nobody to
    // compute with. The first ones, because under a causal mask they see least.
    const int missing =
        p.own_blocks[i] * groups - static_cast<int>(ceil_div(p.own_counts[i], kGroupRows));
    p.short_blocks[i] = forward ? std::min(missing, p.own_blocks[i]) : 0;
    for (int j = 0; p.banded && j < 2; ++j) {
      if (forward) {
        const Band b = band(s.mask, queries.runs[i], keys.runs[j], keys.stride);
        p.bands[i][j] = {clamp_row(b.begin), clamp_row(b.end)};
      } else {
        // Query i sees keys [i + begin, i + end): key j is seen by queries [j - end + 1, j - begin
        // + 1).
        const Band b = band(s.mask, queries.runs[j], keys.runs[i], keys.stride);
        p.bands[i][j] = {1 - clamp_row(b.end), 1 - clamp_row(b.begin)};
      }
    }
  }
  const auto count_tiles = [](const Tiling& tiles, int(&counts)[2]) {
    counts[0] = static_cast<int>(ceil_div(tiles.positions.runs[0].count, tiles.size));
    counts[1] = static_cast<int>(tiles.count());
  };
  count_tiles(forward ? s.queries : s.keys, p.own_tiles);
  count_tiles(forward ? s.keys : s.queries, p.other_tiles);
  p.own_heads = forward ? heads : heads / group;
  const bool early_sees_less = s.mask.left == IntervalMask::kUnbounded && s.mask.chunk == 0 &&
                               s.mask.right != IntervalMask::kUnbounded;
  // Rows that see more come first. In order, late keys do: they meet their first query first, and
  // who must wait for others to add to it should not wait long.
  p.late_first = in_order ? s.mask.right != IntervalMask::kUnbounded : early_sees_less && forward;
  // Query heads share keys; queries are those of a head alone.
  const std::int64_t bytes = others.size() * row_bytes;
  const int all = batch * p.own_heads;
  const bool turns = early_sees_less || in_order;  // in order, blocks of a head wait for each other
  p.heads_per_turn = !turns    ? 1
                     : forward ? heads_per_turn(all, ceil_div(bytes, group))
                               : heads_per_turn(all, bytes * group);
  p.in_order = in_order;
  p.drawn = in_order || p.segmented || !(p.banded && s.mask.full());
  p.tiles = (p.own_blocks[0] + p.own_blocks[1]) * all;
  return p;
}

cudaError_t list_seen_tiles(const PairSchedule& s, Pass pass, int batch, TileSpan* scratch,
                            cudaStream_t stream, Traversal& p) {
  if (!p.segmented || p.other_tiles[1] <= 32) return cudaSuccess;
  const SegmentBounds* queries = s.query_segments.bounds;
  const SegmentBounds* keys = s.key_segments.bounds;
  const bool forward = pass == Pass::kForward;
  p.seen = scratch;
  return find_seen_tiles(forward ? queries : keys, p.own_tiles[1], forward ? keys : queries,
                         p.other_tiles[1], batch, scratch, stream);
}

bool on_hopper() {
  if (only_portable()) return false;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  // Asked once per device: calls should cost the host little.
  static std::atomic<std::uint64_t> known{0};
  static std::atomic<std::uint64_t> hopper{0};
  const std::uint64_t bit = device < 64 ? std::uint64_t{1} << device : 0;
  if ((known & bit) != 0) return (hopper & bit) != 0;
  int major = 0;
  int minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "the device's compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
        "the device's compute capability");
  const bool yes = major == 9 && minor == 0;
  if (yes) hopper |= bit;
  known |= bit;
  return yes;
}

bool takes(const Problem& p) {
  return (p.dtype == DType::kBFloat16 || p.dtype == DType::kFloat16) && p.head_dim % 8 == 0 &&
         p.value_dim % 8 == 0 && p.head_dim <= 256 && p.value_dim <= 256 &&
         p.query_heads < kMaxHeads && p.batch < kMaxHeads && on_hopper();
}

}  // namespace ringattn::cuda::sm90
