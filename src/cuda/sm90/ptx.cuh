// SPDX-License-Identifier: Apache-2.0
// The instructions of sm_90a that C++ has no words for, one function each (PTX ISA 8.x, sections
// named beside them). Shared memory is addressed by 32-bit shared addresses.
#pragma once

#include <cuda.h>

#include <cstdint>

#define RINGATTN_DEVICE __device__ __forceinline__

namespace ringattn::cuda::ptx {

// mbarrier (9.7.13.15). A phase completes when `count` arrivals and all announced bytes are there.
RINGATTN_DEVICE void barrier_init(std::uint32_t barrier, std::uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
/// Makes initialised barriers visible to the copy engine.
RINGATTN_DEVICE void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
RINGATTN_DEVICE void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// If `mine`, without a branch.
RINGATTN_DEVICE void arrive(std::uint32_t barrier, bool mine) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %1, 0;\n"
      "@p mbarrier.arrive.shared::cta.b64 _, [%0];}" ::"r"(barrier),
      "r"(static_cast<int>(mine))
      : "memory");
}
RINGATTN_DEVICE void arrive_expecting(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// The upper half of a clock in nanoseconds: one is 4.3 seconds.
RINGATTN_DEVICE std::uint32_t clock_high() {
  std::uint32_t t;
  asm volatile("mov.u32 %0, %%globaltimer_hi;" : "=r"(t));
  return t;
}
/// Whether the phase with this parity is complete. kSleep: sleeps until it is, for milliseconds at
/// most; without, a try returns in nanoseconds.
template <bool kSleep>
RINGATTN_DEVICE bool try_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  if constexpr (kSleep) {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2, %3; "
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(barrier), "r"(parity), "r"(10'000'000)
        : "memory");
  } else {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
  return done != 0;
}
/// Waits for the phase with this parity, asking again and again: by who computes, whom to wake
/// would take longer than most waits. A wait that does not end within about a minute can only be a
/// fault of ours, and becomes an error instead of a hang.
RINGATTN_DEVICE void wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t tries = 0;
  while (!try_wait<false>(barrier, parity)) {
    if (++tries == 1U << 31) __trap();
  }
}
/// The same by all others, asleep, for two minutes at most: asking, they would take issue slots
/// from who computes, and from each other.
RINGATTN_DEVICE void wait_asleep(std::uint32_t barrier, std::uint32_t parity) {
  if (try_wait<false>(barrier, parity)) return;
  const std::uint32_t begin = clock_high();
  while (!try_wait<true>(barrier, parity)) {
    if (clock_high() - begin > 30) __trap();
  }
}

/// A counter in shared memory that one thread raises: what it did before comes before what others
/// do who have waited for the count.
RINGATTN_DEVICE void store_count(std::uint32_t counter, std::uint32_t count) {
  asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"(counter), "r"(count) : "memory");
}
/// Asks now and then; as in wait(), a wait that does not end can only be a fault of ours.
RINGATTN_DEVICE void wait_for_count(std::uint32_t counter, std::uint32_t count) {
#pragma unroll 1
  for (std::uint32_t tries = 0; tries < 1U << 26; ++tries) {
    std::uint32_t now;
    asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];" : "=r"(now) : "r"(counter) : "memory");
    if (now >= count) return;
    __nanosleep(200);
  }
  __trap();
}

// Words in shared memory: four at once, one, half of one.
RINGATTN_DEVICE uint4 load_words(std::uint32_t from) {
  uint4 w;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
               : "r"(from)
               : "memory");
  return w;
}
RINGATTN_DEVICE void store_words(std::uint32_t to, std::uint32_t a, std::uint32_t b,
                                 std::uint32_t c, std::uint32_t d) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
RINGATTN_DEVICE std::uint32_t load_word(std::uint32_t from) {
  std::uint32_t w;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(from) : "memory");
  return w;
}
RINGATTN_DEVICE void store_word(std::uint32_t to, std::uint32_t w) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(w) : "memory");
}
RINGATTN_DEVICE std::uint32_t load_half_word(std::uint32_t from) {
  std::uint16_t w;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(w) : "r"(from) : "memory");
  return w;
}
RINGATTN_DEVICE void store_half_word(std::uint32_t to, std::uint32_t w) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(static_cast<std::uint16_t>(w)) : "memory");
}

// Named barriers (9.7.13.1), for `threads` threads that arrive or wait.
RINGATTN_DEVICE void named_sync(int id, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
RINGATTN_DEVICE void named_arrive(int id, int threads) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Bulk tensor copies (9.7.9.25): a box of a 4-D tensor into shared memory, bytes counted by a
// barrier; coordinates innermost first; what lies outside the tensor becomes 0.
RINGATTN_DEVICE void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
RINGATTN_DEVICE void load_box(std::uint32_t to, const CUtensorMap* map, std::uint32_t barrier,
                              int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
/// Contiguous bytes: addresses and size are multiples of 16.
RINGATTN_DEVICE void load_bytes(std::uint32_t to, const void* from, std::uint32_t bytes,
                                std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
/// Contiguous bytes into L2: address and size are multiples of 16.
RINGATTN_DEVICE void prefetch_l2(const void* from, std::uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

/// Adds floats in shared memory to those in global memory, in no particular order with other
/// additions (9.7.9.25.5.2). Addresses and size are multiples of 16.
RINGATTN_DEVICE void add_bytes(float* to, std::uint32_t from, std::uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n"
      "cp.async.bulk.commit_group;" ::"l"(to),
      "r"(from), "r"(bytes)
      : "memory");
}
/// The same, stored instead of added.
RINGATTN_DEVICE void store_bytes(float* to, std::uint32_t from, std::uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n"
      "cp.async.bulk.commit_group;" ::"l"(to),
      "r"(from), "r"(bytes)
      : "memory");
}
/// Until all but the last kPending of these of this thread have read shared memory.
template <int kPending>
RINGATTN_DEVICE void wait_bytes_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
/// Until all but the last kPending have been done, and what this thread releases from here on comes
/// after them.
template <int kPending>
RINGATTN_DEVICE void wait_bytes_added() {
  asm volatile("cp.async.bulk.wait_group %0;\nfence.proxy.async.global;" ::"n"(kPending)
               : "memory");
}
/// A counter in global memory, of several blocks: what was done before count() is seen, also by the
/// copy engine, by who has seen the count (9.7.13.15).
RINGATTN_DEVICE void count(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
RINGATTN_DEVICE bool counted(const unsigned* counter, unsigned wanted) {
  unsigned seen = 0;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  if (seen < wanted) return false;
  asm volatile("fence.proxy.async.global;" ::: "memory");
  return true;
}
/// A wait of minutes can only be a fault of ours.
RINGATTN_DEVICE void wait_count(const unsigned* counter, unsigned wanted) {
  for (unsigned tries = 0; !counted(counter, wanted); ++tries) {
    if (tries == 1U << 28) __trap();
  }
}
/// From 0 to 1, by one thread of all that try.
RINGATTN_DEVICE bool claim(unsigned* counter) {
  unsigned before = 0;
  asm volatile("atom.relaxed.gpu.global.cas.b32 %0, [%1], 0, 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before == 0;
}

RINGATTN_DEVICE void load_shared(float* x, std::uint32_t from) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "r"(from)
               : "memory");
}
RINGATTN_DEVICE void store_shared(std::uint32_t to, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
}
/// Four 8 x 8 tiles of 16-bit numbers, transposed: thread 8 m + i gives the address of row i of the
/// result of tile m (9.7.15.5.16). 16-byte aligned.
RINGATTN_DEVICE void store_transposed(std::uint32_t to, std::uint32_t a, std::uint32_t b,
                                      std::uint32_t c, std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
/// Makes ordinary writes to shared memory visible to wgmma and the copy engine.
RINGATTN_DEVICE void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Registers of a warpgroup (9.7.19.5).
template <int kRegisters>
RINGATTN_DEVICE void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
RINGATTN_DEVICE void request_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// 2^x, about 2 ulp; what would be denormal becomes 0.
RINGATTN_DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// tanh x with a relative error of about 2^-11.
RINGATTN_DEVICE float fast_tanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
RINGATTN_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The maximum over a warp of a value that is equal in all its threads: it comes back in a uniform
/// register, so that branches on it are known to be uniform, as wgmma wants them.
RINGATTN_DEVICE int uniform(int x) { return __reduce_max_sync(0xFFFFFFFFU, x); }

}  // namespace ringattn::cuda::ptx
