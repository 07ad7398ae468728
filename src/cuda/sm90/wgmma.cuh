// SPDX-License-Identifier: Apache-2.0
// wgmma (PTX ISA 9.7.15): a warpgroup multiplies a 64 x 16 by a 16 x N tile of 16-bit numbers and
// adds to 64 x N floats in its registers. Of thread t, element 4 i + 2 r + e of the result is row
// 16 (t / 32) + t % 32 / 4 + 8 r, column 8 i + 2 (t % 4) + e; two neighbouring 8-column groups,
// packed in pairs, are the A operand of 16 columns.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/sm90/ptx.cuh"

namespace ringattn::cuda::ptx {

/// Orders register writes of ordinary instructions before the next wgmma.
RINGATTN_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
RINGATTN_DEVICE void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Until at most kPending groups are under way.
template <int kPending>
RINGATTN_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Keeps the compiler from reading a result before the wait that stands above this.
template <int kCount>
RINGATTN_DEVICE void pin(float (&r)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(r[i])::"memory");
}
template <int kCount>
RINGATTN_DEVICE void pin(std::uint32_t (&r)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

RINGATTN_DEVICE void pin(std::uint32_t& r) { asm volatile("" : "+r"(r)::"memory"); }

/// An operand in shared memory with the 128-byte swizzle: panels of 64 columns, each of rows of 128
/// bytes, chunk c of row r at c ^ (r % 8); 1024-byte aligned. `panel_bytes`: from panel to panel,
/// where the rows are the dimension that is summed over.
RINGATTN_DEVICE std::uint64_t descriptor(std::uint32_t address, std::uint32_t panel_bytes) {
  constexpr std::uint64_t kEightRows = 1024;
  constexpr std::uint64_t kSwizzle128 = 1;
  return static_cast<std::uint64_t>((address & 0x3FFFF) >> 4) |
         static_cast<std::uint64_t>(panel_bytes >> 4) << 16 | (kEightRows >> 4) << 32 |
         kSwizzle128 << 62;
}

template <class T, int kColumns>
struct Wgmma;

// Register lists, and the outputs they name.
#define RINGATTN_LIST_32                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define RINGATTN_LIST_40 RINGATTN_LIST_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define RINGATTN_LIST_64                                                             \
  RINGATTN_LIST_32                                                                   \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define RINGATTN_LIST_128                                                                      \
  RINGATTN_LIST_64                                                                             \
  ", "                                                                                         \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "           \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
  "%111, "                                                                                     \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"
#define RINGATTN_4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define RINGATTN_8(c, i) RINGATTN_4(c, i), RINGATTN_4(c, i + 4)
#define RINGATTN_16(c, i) RINGATTN_8(c, i), RINGATTN_8(c, i + 8)
#define RINGATTN_OUT_32(c) RINGATTN_16(c, 0), RINGATTN_16(c, 16)
#define RINGATTN_OUT_40(c) RINGATTN_OUT_32(c), RINGATTN_8(c, 32)
#define RINGATTN_OUT_64(c) RINGATTN_OUT_32(c), RINGATTN_16(c, 32), RINGATTN_16(c, 48)
#define RINGATTN_OUT_128(c)                                                       \
  RINGATTN_OUT_64(c), RINGATTN_16(c, 64), RINGATTN_16(c, 80), RINGATTN_16(c, 96), \
      RINGATTN_16(c, 112)

// r: registers of the result, N / 2; a0 to a4: the numbers r to r + 4.
//
// d = a b + (keep != 0 ? d : 0), both in shared memory, b summed over its columns (rows: 0) or over
// its rows (1). Where the compiler does not know `keep`, d stays in the registers where it is.
#define RINGATTN_WGMMA_SHARED(name, type, n, r, a0, a1, a2, rows)                                  \
  RINGATTN_DEVICE static void name(float(&d)[r], std::uint64_t a, std::uint64_t b, int keep = 1) { \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #a2                                             \
                 ", 0;\n"                                                                          \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                   \
                 " {" RINGATTN_LIST_##r "}, %" #a0 ", %" #a1 ", p, 1, 1, 0, " #rows ";}\n"         \
                 : RINGATTN_OUT_##r("+f")                                                          \
                 : "l"(a), "l"(b), "r"(keep));                                                     \
  }
#define RINGATTN_WGMMA(T, type, n, r, a0, a1, a2, a3, a4)                                        \
  template <>                                                                                    \
  struct Wgmma<T, n> {                                                                           \
    /* d = a b', both in shared memory, summed over their columns. */                            \
    RINGATTN_DEVICE static void multiply(float (&d)[r], std::uint64_t a, std::uint64_t b) {      \
      asm volatile(                                                                              \
          "{.reg .pred p; setp.ne.b32 p, 0, 0;\n"                                                \
          "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" RINGATTN_LIST_##r \
          "}, %" #a0 ", %" #a1 ", p, 1, 1, 0, 0;}\n"                                             \
          : RINGATTN_OUT_##r("=f")                                                               \
          : "l"(a), "l"(b));                                                                     \
    }                                                                                            \
    RINGATTN_WGMMA_SHARED(multiply_add, type, n, r, a0, a1, a2, 0)                               \
    RINGATTN_WGMMA_SHARED(multiply_add_columns, type, n, r, a0, a1, a2, 1)                       \
    /* d += a b, a in registers, b in shared memory, summed over the rows of b. */               \
    RINGATTN_DEVICE static void multiply_add(float (&d)[r], const std::uint32_t* a,              \
                                             std::uint64_t b) {                                  \
      asm volatile(                                                                              \
          "{.reg .pred p; setp.ne.b32 p, 1, 0;\n"                                                \
          "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" RINGATTN_LIST_##r \
          "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #a4 ", p, 1, 1, 1;}\n"                \
          : RINGATTN_OUT_##r("+f")                                                               \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                 \
    }                                                                                            \
  };
RINGATTN_WGMMA(__nv_bfloat16, "bf16", 64, 32, 32, 33, 34, 35, 36)
RINGATTN_WGMMA(__nv_bfloat16, "bf16", 80, 40, 40, 41, 42, 43, 44)
RINGATTN_WGMMA(__nv_bfloat16, "bf16", 128, 64, 64, 65, 66, 67, 68)
RINGATTN_WGMMA(__nv_bfloat16, "bf16", 256, 128, 128, 129, 130, 131, 132)
RINGATTN_WGMMA(__half, "f16", 64, 32, 32, 33, 34, 35, 36)
RINGATTN_WGMMA(__half, "f16", 80, 40, 40, 41, 42, 43, 44)
RINGATTN_WGMMA(__half, "f16", 128, 64, 64, 65, 66, 67, 68)
RINGATTN_WGMMA(__half, "f16", 256, 128, 128, 129, 130, 131, 132)
#undef RINGATTN_WGMMA
#undef RINGATTN_WGMMA_SHARED

/// Two floats rounded to T, the first in the low half.
template <class T>
RINGATTN_DEVICE std::uint32_t pack(float low, float high);
template <>
RINGATTN_DEVICE std::uint32_t pack<__nv_bfloat16>(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
RINGATTN_DEVICE std::uint32_t pack<__half>(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

/// And back.
template <class T>
RINGATTN_DEVICE float2 unpack(std::uint32_t packed) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(*reinterpret_cast<const __half2*>(&packed));
  } else {
    return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xFFFF0000U));
  }
}

}  // namespace ringattn::cuda::ptx
