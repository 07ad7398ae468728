// SPDX-License-Identifier: Apache-2.0
// Which tiles a block of threads visits: the schedule's answers, asked from the device. One thread
// walks, for all; all threads find the bits of masked tiles.
#pragma once

#include <new>

#include "cuda/bits.cuh"
#include "cuda/portable/tile.cuh"
#include "schedule.h"

namespace ringattn::cuda {

/// At most kPiece consecutive rows of one tile.
struct Piece {
  std::int64_t tile;  // its number
  std::int64_t row;   // first row
  int offset;         // of that row within the tile
  int rows;           // 0: there is no more
  bool masked;        // some pairs may be invisible
};

/// Tiles of one side that a tile of the other side visits, in pieces. kKeys: the key tiles of a
/// query tile; otherwise the query tiles of a key tile.
template <bool kKeys, int kPiece>
class Walk {
 public:
  __device__ Walk(const PairSchedule& schedule, int batch, int head, std::int64_t own_tile)
      : batch_(batch), head_(head), own_(own_tile) {
    if constexpr (kKeys) {
      ranges_ = visit(schedule.mask, schedule.queries[own_tile].span, schedule.keys);
    } else {
      ranges_ = visit(schedule.mask.transposed(), schedule.keys[own_tile].span, schedule.queries);
    }
    by_ranges_ = schedule.interval_only() && others(schedule).positions.list == nullptr &&
                 (kKeys ? schedule.queries : schedule.keys).positions.list == nullptr;
    enter_run(schedule, 0);
  }

  __device__ Piece next(const PairSchedule& schedule) {
    offset_ += kPiece;
    if (offset_ >= rows_ && !advance(schedule)) return {0, 0, 0, 0, false};
    const int rows = rows_ - offset_ < kPiece ? rows_ - offset_ : kPiece;
    return {next_ - 1, row_ + offset_, offset_, rows, masked_};
  }

 private:
  __device__ static const Tiling& others(const PairSchedule& s) {
    return kKeys ? s.keys : s.queries;
  }

  /// Where the rows of a run begin and end. Tiling has the same; here no tile costs a division.
  __device__ void enter_run(const PairSchedule& schedule, int run) {
    const Tiling& tiles = others(schedule);
    const std::int64_t head = tiles.positions.runs[0].count;
    run_ = run;
    run_tile_ = run == 0 ? 0 : ceil_div(head, tiles.size);
    run_row_ = run == 0 ? 0 : head;
    run_end_ = run_row_ + tiles.positions.runs[run].count;
    next_ = ranges_.visited[run].begin;
  }

  /// To the next tile that is not empty.
  __device__ bool advance(const PairSchedule& schedule) {
    for (;;) {
      while (next_ >= ranges_.visited[run_].end) {
        if (run_ == 1) return false;
        enter_run(schedule, 1);
      }
      const std::int64_t tile = next_++;
      TileKind kind = TileKind::kMasked;
      if (by_ranges_) {
        kind = ranges_.is_full(tile) ? TileKind::kFull : TileKind::kMasked;
      } else {
        kind = kKeys ? schedule.kind(batch_, head_, own_, tile)
                     : schedule.kind(batch_, head_, tile, own_);
      }
      if (kind == TileKind::kSkip) continue;
      const std::int64_t size = others(schedule).size;
      row_ = run_row_ + (tile - run_tile_) * size;
      rows_ = static_cast<int>(run_end_ - row_ < size ? run_end_ - row_ : size);
      offset_ = 0;
      masked_ = kind == TileKind::kMasked;
      return true;
    }
  }

  int batch_, head_;
  std::int64_t own_;
  TileRanges ranges_;
  std::int64_t run_tile_ = 0, run_row_ = 0, run_end_ = 0, next_ = 0, row_ = 0;
  int run_ = 0, rows_ = 0, offset_ = 0;
  bool by_ranges_ = false, masked_ = false;
};

/// The segment ids of a piece's rows if some may be padding, else null. Padding has weights of 0
/// in products, but 0 times NaN is NaN.
template <bool kKeys>
__device__ const std::int32_t* ids_with_padding(const PairSchedule& s, const Piece& piece,
                                                int batch) {
  const std::int32_t* ids = (kKeys ? s.key_segments : s.query_segments).ids;
  if (!piece.masked || ids == nullptr) return nullptr;
  return ids + batch * (kKeys ? s.keys : s.queries).positions.size() + piece.row;
}

/// What the threads of a block share of a walk: the pieces now, next and after that.
template <bool kKeys, int kPiece>
struct SharedWalk {
  Piece pieces[4];
  alignas(8) unsigned char walk[sizeof(Walk<kKeys, kPiece>)];

  /// By one thread; the others see pieces 0 and 1 after a barrier.
  __device__ void begin(const PairSchedule& s, int batch, int head, std::int64_t own_tile) {
    new (walk) Walk<kKeys, kPiece>(s, batch, head, own_tile);
    pieces[0] = next(s);
    pieces[1] = pieces[0].rows > 0 ? next(s) : pieces[0];
  }
  __device__ Piece next(const PairSchedule& s) {
    return reinterpret_cast<Walk<kKeys, kPiece>*>(walk)->next(s);
  }
};

/// Bits of the columns of a piece that each of kRows rows sees: word w of row i holds columns
/// 32 w to 32 w + 31.
template <int kRows, int kPiece>
struct SharedBits {
  std::uint32_t words[kRows][kPiece / 32 + (kPiece < 32)];
};

/// Fills the bits of `rows` rows from local row `own` on; the rest becomes 0. By kThreads
/// threads, of which this is number `thread`.
template <bool kKeys, int kThreads, int kRows, int kPiece>
__device__ void find_bits(int thread, const PairSchedule& schedule, const Piece& piece, int batch,
                          int head, std::int64_t own, int rows, SharedBits<kRows, kPiece>& bits) {
  constexpr int kWords = sizeof(bits.words[0]) / 4;
  const PairSchedule& s = read_anew(schedule);
  const Tile tile = (kKeys ? s.keys : s.queries)[piece.tile];
#pragma unroll 1
  for (int n = thread; n < kRows * kWords; n += kThreads) {
    const int i = n / kWords;
    const int first = n % kWords * 32;
    const int columns = piece.rows - first < 32 ? piece.rows - first : 32;
    bits.words[i][n % kWords] =
        i < rows && columns > 0
            ? visible_word<kKeys>(s, batch, head, own + i, tile, piece.offset + first, columns)
            : 0;
  }
}

}  // namespace ringattn::cuda
