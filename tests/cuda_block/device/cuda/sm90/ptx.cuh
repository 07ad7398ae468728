// SPDX-License-Identifier: Apache-2.0
// In place of src/cuda/sm90/ptx.cuh: the instructions that the warps beside the computing ones use,
// on host threads. Barriers know the parity of their phase and no more, as on the device; copies
// come late, one after another; any wait that lasts too long is a deadlock and ends the process.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#define RINGATTN_DEVICE inline
#ifndef __device__
#define __device__
#endif

// What nvcc declares. NOLINTBEGIN(bugprone-reserved-identifier)
struct Index {
  int x = 0;
};
inline thread_local Index threadIdx, blockIdx, gridDim;
template <class A, class B>
constexpr auto min(A a, B b) {
  return a < b ? a : b;
}
template <class A, class B>
constexpr auto max(A a, B b) {
  return a > b ? a : b;
}
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned atomicAdd(unsigned* p, unsigned n) {
  return __atomic_fetch_add(p, n, __ATOMIC_SEQ_CST);
}

namespace host {

/// Where copies come from: `kind` marks the tensor, boxes have `rows` rows, the tensor `total`.
struct Map {
  std::uint32_t kind;
  int rows, total;
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap));

/// What lies in shared memory for a row of a tensor: in every word of it.
constexpr std::uint32_t mark(std::uint32_t kind, int batch, int head, int row) {
  return kind << 28U | static_cast<std::uint32_t>(batch) << 24U |
         static_cast<std::uint32_t>(head) << 20U | static_cast<std::uint32_t>(row + 1);
}

struct Barrier {
  int count = 0, pending = 0;
  std::int64_t bytes = 0;  // announced and not there
  unsigned phase = 0;
};
struct Copy {
  std::uint32_t to, barrier, bytes;
  const Map* map;  // null: bytes that nobody looks at
  int row, head, batch;
};
/// Lanes that exchange words.
struct Warp {
  int arrived = 0;
  unsigned round = 0;
  std::array<std::uint32_t, 32> in{}, out{};
};

/// One block of threads: everything under one lock.
struct Block {
  std::mutex mutex;
  std::condition_variable changed;
  std::array<unsigned char, 232448> shared{};
  std::map<std::uint32_t, Barrier> barriers;
  std::deque<Copy> copies;
  bool over = false;
};
inline Block* block = nullptr;
inline thread_local Warp* warp = nullptr;
inline thread_local const char* role = "";
inline thread_local std::mt19937 random;

[[noreturn]] inline void fail(const char* what, std::int64_t a = 0, std::int64_t b = 0) {
  std::fprintf(stderr, "%s: %s (%lld, %lld)\n", role, what, static_cast<long long>(a),
               static_cast<long long>(b));
  std::_Exit(1);
}
/// Another thread may go first.
inline void dawdle() {
  if (random() % 8 != 0) return;
  for (auto i = random() % 4; i > 0; --i) std::this_thread::yield();
}
template <class Done>
void until(std::unique_lock<std::mutex>& lock, const char* what, std::int64_t a, const Done& done) {
  if (!block->changed.wait_for(lock, std::chrono::seconds(60), done)) fail(what, a);
}
/// A word of shared memory. Under the lock.
inline std::uint32_t word(std::uint32_t at) {
  std::uint32_t w;
  std::memcpy(&w, block->shared.data() + at, sizeof w);
  return w;
}
inline void set_word(std::uint32_t at, std::uint32_t w) {
  std::memcpy(block->shared.data() + at, &w, sizeof w);
}
inline void advance(Barrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  ++b.phase;
  b.pending = b.count;
  block->changed.notify_all();
}

inline std::array<std::uint32_t, 32> exchange(std::uint32_t value) {
  std::unique_lock lock(block->mutex);
  warp->in[static_cast<std::size_t>(threadIdx.x % 32)] = value;
  const unsigned round = warp->round;
  if (++warp->arrived == 32) {
    warp->out = warp->in;
    warp->arrived = 0;
    ++warp->round;
    block->changed.notify_all();
  }
  until(lock, "a warp that is not together", threadIdx.x, [&] { return warp->round != round; });
  return warp->out;
}

/// By the thread that copies, until the block is over.
inline void copy() {
  std::unique_lock lock(block->mutex);
  for (;;) {
    block->changed.wait(lock, [] { return block->over || !block->copies.empty(); });
    if (block->copies.empty()) return;
    const Copy c = block->copies.front();
    block->copies.pop_front();
    lock.unlock();
    for (auto i = random() % 6; i > 0; --i) std::this_thread::yield();
    lock.lock();
    for (int i = 0; c.map != nullptr && i < c.map->rows; ++i) {
      const bool exists = c.row + i < c.map->total;
      const std::uint32_t w = exists ? mark(c.map->kind, c.batch, c.head, c.row + i) : 0;
      for (std::uint32_t n = 0; n < 32; ++n) {
        set_word(c.to + 128 * static_cast<std::uint32_t>(i) + 4 * n, w);
      }
    }
    Barrier& b = block->barriers.at(c.barrier);
    b.bytes -= c.bytes;
    advance(b);
  }
}

}  // namespace host

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  static_assert(sizeof(T) == 4);
  std::uint32_t w;
  std::memcpy(&w, &value, sizeof w);
  w = host::exchange(w)[static_cast<std::size_t>(from) % 32];
  host::exchange(0);  // no one begins the next while another still reads
  std::memcpy(&value, &w, sizeof w);
  return value;
}
inline unsigned __ballot_sync(unsigned, bool value) {
  const std::array<std::uint32_t, 32> all = host::exchange(value ? 1 : 0);
  host::exchange(0);
  unsigned bits = 0;
  for (unsigned i = 0; i < 32; ++i) bits |= all[i] << i;
  return bits;
}
inline void __syncwarp() { host::exchange(0); }
// NOLINTEND(bugprone-reserved-identifier)

namespace ringattn::cuda::ptx {

inline void barrier_init(std::uint32_t barrier, std::uint32_t count) {
  const std::lock_guard lock(host::block->mutex);
  const int n = static_cast<int>(count);
  host::block->barriers[barrier] = {n, n, 0, 0};
}
inline void arrive_expecting(std::uint32_t barrier, std::uint32_t bytes) {
  host::dawdle();
  const std::lock_guard lock(host::block->mutex);
  host::Barrier& b = host::block->barriers.at(barrier);
  b.bytes += bytes;
  if (--b.pending < 0) host::fail("more arrivals than a barrier expects", barrier);
  host::advance(b);
}
inline void arrive(std::uint32_t barrier) { arrive_expecting(barrier, 0); }
inline void wait(std::uint32_t barrier, std::uint32_t parity) {
  host::dawdle();
  std::unique_lock lock(host::block->mutex);
  const host::Barrier& b = host::block->barriers.at(barrier);
  host::until(lock, "a barrier that nobody completes", barrier,
              [&] { return (b.phase & 1U) != parity; });
}
inline void wait_asleep(std::uint32_t barrier, std::uint32_t parity) { wait(barrier, parity); }
inline void store_count(std::uint32_t counter, std::uint32_t count) {
  host::dawdle();
  const std::lock_guard lock(host::block->mutex);
  host::set_word(counter, count);
  host::block->changed.notify_all();
}
inline void wait_for_count(std::uint32_t counter, std::uint32_t count) {
  std::unique_lock lock(host::block->mutex);
  host::until(lock, "a count that nobody reaches", count,
              [&] { return host::word(counter) >= count; });
}

inline void load_box(std::uint32_t to, const CUtensorMap* map, std::uint32_t barrier, int /*c0*/,
                     int row, int head, int batch) {
  host::dawdle();
  const std::lock_guard lock(host::block->mutex);
  const auto* from = reinterpret_cast<const host::Map*>(map);
  const auto bytes = static_cast<std::uint32_t>(from->rows) * 128;
  host::block->copies.push_back({to, barrier, bytes, from, row, head, batch});
  host::block->changed.notify_all();
}
inline void load_bytes(std::uint32_t to, const void*, std::uint32_t bytes, std::uint32_t barrier) {
  const std::lock_guard lock(host::block->mutex);
  host::block->copies.push_back({to, barrier, bytes, nullptr, 0, 0, 0});
  host::block->changed.notify_all();
}
inline void prefetch_l2(const void*, std::uint32_t) {}

inline std::uint32_t load_word(std::uint32_t from) {
  const std::lock_guard lock(host::block->mutex);
  return host::word(from);
}
inline void store_word(std::uint32_t to, std::uint32_t w) {
  const std::lock_guard lock(host::block->mutex);
  host::set_word(to, w);
}
inline uint4 load_words(std::uint32_t from) {
  return {load_word(from), load_word(from + 4), load_word(from + 8), load_word(from + 12)};
}
inline void store_words(std::uint32_t to, std::uint32_t a, std::uint32_t b, std::uint32_t c,
                        std::uint32_t d) {
  store_word(to, a);
  store_word(to + 4, b);
  store_word(to + 8, c);
  store_word(to + 12, d);
}
inline std::uint32_t load_half_word(std::uint32_t from) {
  const std::uint32_t w = load_word(from & ~3U);
  return (from & 2U) != 0 ? w >> 16U : w & 0xFFFFU;
}
inline void store_half_word(std::uint32_t to, std::uint32_t w) {
  const std::lock_guard lock(host::block->mutex);
  const auto half = static_cast<std::uint16_t>(w);
  std::memcpy(host::block->shared.data() + to, &half, sizeof half);
}
inline void store_shared(std::uint32_t to, float a, float b, float c, float d) {
  const std::lock_guard lock(host::block->mutex);
  const float x[] = {a, b, c, d};
  std::memcpy(host::block->shared.data() + to, x, sizeof x);
}
inline void fence_shared() {}

/// Sums in global memory: of the first number of what is there; the second must always be the same.
inline void add_bytes(float* to, std::uint32_t from, std::uint32_t) {
  host::dawdle();
  const std::lock_guard lock(host::block->mutex);
  float x[2];
  std::memcpy(x, host::block->shared.data() + from, sizeof x);
  if (to[0] != 0 && to[1] != x[1]) host::fail("added to another's sums", static_cast<int>(x[1]));
  to[0] += x[0];
  to[1] = x[1];
}
inline void store_bytes(float* to, std::uint32_t from, std::uint32_t bytes) {
  to[0] = to[1] = 0;
  add_bytes(to, from, bytes);
}
template <int>
void wait_bytes_read() {}
template <int>
void wait_bytes_added() {}
inline void count(unsigned* counter) {
  const std::lock_guard lock(host::block->mutex);
  ++*counter;
  host::block->changed.notify_all();
}
inline bool counted(const unsigned* counter, unsigned wanted) {
  const std::lock_guard lock(host::block->mutex);
  return *counter >= wanted;
}
inline bool claim(unsigned* counter) {
  host::dawdle();
  const std::lock_guard lock(host::block->mutex);
  if (*counter != 0) return false;
  *counter = 1;
  return true;
}
/// There is one block: when its turn has come, nobody has added who begins later.
inline void wait_count(const unsigned* counter, unsigned wanted) {
  std::unique_lock lock(host::block->mutex);
  host::until(lock, "a turn that does not come", wanted, [&] { return *counter >= wanted; });
  if (*counter > wanted) host::fail("additions out of order", *counter, wanted);
}

}  // namespace ringattn::cuda::ptx
