// SPDX-License-Identifier: Apache-2.0
// Products of tiles, as sequences of wgmma. Tiles lie in shared memory as ptx::descriptor says.
#pragma once

#include "cuda/sm90/wgmma.cuh"

namespace ringattn::cuda::sm90 {

/// d = a b', a of 64 rows within panels of kARows rows, b of kColumns rows; both kDepth wide.
template <class T, int kDepth, int kColumns, int kARows>
RINGATTN_DEVICE void multiply_rows(float (&d)[kColumns / 2], std::uint64_t a, std::uint64_t b) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    const std::uint64_t at = a + ((k / 4 * kARows * 128 + k % 4 * 32) >> 4);
    const std::uint64_t bt = b + ((k / 4 * kColumns * 128 + k % 4 * 32) >> 4);
    if (k == 0) {
      ptx::Wgmma<T, kColumns>::multiply(d, at, bt);
    } else {
      ptx::Wgmma<T, kColumns>::multiply_add(d, at, bt);
    }
  }
}

/// The same into the registers that d has, whatever they hold. `zero` is 0, which the compiler must
/// not know: see wgmma.cuh.
template <class T, int kDepth, int kColumns, int kARows>
RINGATTN_DEVICE void multiply_rows_in_place(float (&d)[kColumns / 2], std::uint64_t a,
                                            std::uint64_t b, int zero) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    ptx::Wgmma<T, kColumns>::multiply_add(d, a + ((k / 4 * kARows * 128 + k % 4 * 32) >> 4),
                                          b + ((k / 4 * kColumns * 128 + k % 4 * 32) >> 4),
                                          k == 0 ? zero : 1);
  }
}

/// acc += p b, p of kDepth columns in registers, b of kDepth rows, kColumns wide.
template <class T, int kColumns, int kDepth>
RINGATTN_DEVICE void gather(float (&acc)[kColumns / 2], const std::uint32_t (&p)[kDepth / 4],
                            std::uint64_t b) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    ptx::Wgmma<T, kColumns>::multiply_add(acc, p + 4 * k, b + ((k * 2048) >> 4));
  }
}

/// acc += p b, p of 64 columns, packed in the bits of floats: four of every kFour.
template <class T, int kColumns, int kFour>
RINGATTN_DEVICE void gather_packed(float (&acc)[kColumns / 2], const float* p, std::uint64_t b) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    std::uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = __float_as_uint(p[kFour * k + i]);
    ptx::Wgmma<T, kColumns>::multiply_add(acc, w, b + ((k * 2048) >> 4));
  }
}

/// d = a b, a of 64 rows within panels of kARows rows, kDepth wide; b of kDepth rows, 64 wide. As
/// multiply_rows_in_place.
template <class T, int kDepth, int kARows>
RINGATTN_DEVICE void multiply_columns_in_place(float (&d)[32], std::uint64_t a, std::uint64_t b,
                                               int zero) {
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    ptx::Wgmma<T, 64>::multiply_add_columns(d, a + ((k / 4 * kARows * 128 + k % 4 * 32) >> 4),
                                            b + ((k * 2048) >> 4), k == 0 ? zero : 1);
  }
}

}  // namespace ringattn::cuda::sm90
