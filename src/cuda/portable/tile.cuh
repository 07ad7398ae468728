// SPDX-License-Identifier: Apache-2.0
// Tiles of rows in shared memory: their layout, and how they are filled from global memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace ringattn::cuda {

/// threadIdx.x, read anew: what follows from it in a loop is computed there instead of occupying
/// registers all the time.
__device__ inline int thread_number() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}
/// For the same end.
template <class T>
__device__ const T& read_anew(const T& x) {
  const T* at = &x;
  asm volatile("" : "+l"(at));
  return *at;
}

/// A tile of `kRows` x `kDim` in shared memory, in chunks of 16 bytes. 16-bit types: chunk c of row
/// r lies at c ^ (r % 8), so that eight rows of one column fall into different banks; 32-bit types
/// have rows 16 bytes longer for the same end.
template <class T, int kRowCount, int kDim>
struct SharedTile {
  static constexpr int kRows = kRowCount;
  static constexpr int kChunkElements = 16 / sizeof(T);
  static constexpr int kChunks = kDim / kChunkElements;
  static constexpr bool kSwizzled = sizeof(T) == 2;
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T)) + (kSwizzled ? 0 : 16);
  static constexpr int kBytes = kRows * kRowBytes;

  std::uint32_t base;  // shared address; a multiple of kRowBytes if swizzled

  __device__ std::uint32_t chunk(int row, int c) const {
    return base + row * kRowBytes + ((kSwizzled ? c ^ (row & 7) : c) << 4);
  }
};

__device__ inline void copy_async(std::uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
/// Zeros if not valid.
__device__ inline void copy_async(std::uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ inline void copy_number(std::uint32_t to, const float* from, bool valid) {
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
__device__ inline void store_shared(std::uint32_t to, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}
__device__ inline uint4 load_shared(std::uint32_t from) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(from)
               : "memory");
  return x;
}

__device__ inline float2 load_shared2(std::uint32_t from) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(from) : "memory");
  return x;
}
__device__ inline float4 load_shared4(std::uint32_t from) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(from)
               : "memory");
  return x;
}
__device__ inline void store_shared2(std::uint32_t to, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(x), "f"(y) : "memory");
}

__device__ inline void store_shared4(std::uint32_t to, const float (&x)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(x[0]), "f"(x[1]),
               "f"(x[2]), "f"(x[3])
               : "memory");
}

/// 16 bytes of which the first `count` elements are read and the rest is 0.
template <class T>
__device__ uint4 read_chunk(const T* from, int count) {
  union {
    T element[16 / sizeof(T)];
    uint4 all;
  } x;
  x.all = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int e = 0; e < static_cast<int>(16 / sizeof(T)); ++e) {
    if (e < count) x.element[e] = from[e];
  }
  return x.all;
}

/// Starts filling a tile with `rows` rows of `dim` elements from `from` on; the rest becomes 0, and
/// so do rows whose id, if there are ids, is negative: padding may hold anything. kThreads threads
/// take part, of which this is number threadIdx.x % kThreads. The caller commits, waits and
/// synchronises.
template <int kThreads, class T, int kRows, int kDim>
__device__ void load_tile(const SharedTile<T, kRows, kDim>& tile, const T* from,
                          std::int64_t stride, int rows, int dim, bool aligned,
                          const std::int32_t* ids = nullptr) {
  using Tile = SharedTile<T, kRows, kDim>;
  constexpr int kAtOnce = kThreads / Tile::kChunks;  // rows
  static_assert(kThreads % Tile::kChunks == 0 && kRows % kAtOnce == 0);
  const int thread = thread_number() % kThreads;
  const int row = thread / Tile::kChunks;
  const int chunk = thread % Tile::kChunks;
  const int column = chunk * Tile::kChunkElements;
  const T* source = from + row * stride + column;
  if (aligned && rows == kRows && dim == kDim && ids == nullptr) {
#pragma unroll
    for (int i = 0; i < kRows; i += kAtOnce) {
      copy_async(tile.chunk(row + i, chunk), source);
      source += kAtOnce * stride;
    }
    return;
  }
  const int left = column < dim ? rows - row : 0;
#pragma unroll 1
  for (int i = 0; i < kRows; i += kAtOnce) {
    const bool valid = i < left && (ids == nullptr || ids[row + i] >= 0);
    if (aligned) {
      copy_async(tile.chunk(row + i, chunk), valid ? source : from, valid);
    } else {
      store_shared(tile.chunk(row + i, chunk), read_chunk(source, valid ? dim - column : 0));
    }
    source += kAtOnce * stride;
  }
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

/// Replaces what is not finite by 0: for products whose other factor already carries the NaN to
/// the rows that see it. The caller synchronises.
template <int kThreads, class T, int kRows, int kDim>
__device__ void clear_non_finite(const SharedTile<T, kRows, kDim>& tile) {
  using Tile = SharedTile<T, kRows, kDim>;
  for (int n = static_cast<int>(threadIdx.x) % kThreads; n < kRows * Tile::kChunks; n += kThreads) {
    const std::uint32_t at = tile.chunk(n / Tile::kChunks, n % Tile::kChunks);
    union {
      T element[Tile::kChunkElements];
      uint4 all;
    } x;
    x.all = load_shared(at);
    bool changed = false;
#pragma unroll
    for (int e = 0; e < Tile::kChunkElements; ++e) {
      if (!isfinite(to_float(x.element[e]))) {
        x.element[e] = from_float<T>(0.0F);
        changed = true;
      }
    }
    if (changed) store_shared(at, x.all);
  }
}

}  // namespace ringattn::cuda
