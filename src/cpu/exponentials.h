// SPDX-License-Identifier: Apache-2.0
// 2^x and tanh of vectors. For kernels.cpp alone.
#pragma once

#include "cpu/simd.h"

// NOLINTBEGIN(google-build-namespaces, misc-definitions-in-headers)
namespace ringattn::cpu {
namespace {

// exp2(x): 2^x for n vectors, relative error below 1.3e-7; 0 below 2^-125; x < 128; NaN for NaN.
// Each line is done for all vectors before the next, because one vector alone waits for itself.

#if defined(__AVX2__)

// x = k / kParts + r: 2^(k / kParts) from a table in registers, 2^r by a minimax polynomial of
// degree 3 (own fits, 1e-10 and 2.5e-8). The table holds the bits of 2^(i / kParts) less i times
// kUnit, so that k * kUnit adds the exponent and takes i away again.
#if defined(__AVX512F__)
constexpr int kPartBits = 5;
constexpr I kTable[2] = {{0x3F800000, 0x3F7ECD87, 0x3F7DAAC3, 0x3F7C980F, 0x3F7B95C2, 0x3F7AA43A,
                          0x3F79C3D3, 0x3F78F4F0, 0x3F7837F0, 0x3F778D3A, 0x3F76F532, 0x3F767043,
                          0x3F75FED7, 0x3F75A15B, 0x3F75583F, 0x3F7523F6},
                         {0x3F7504F3, 0x3F74FBAF, 0x3F7508A4, 0x3F752C4D, 0x3F75672A, 0x3F75B9BE,
                          0x3F76248C, 0x3F76A81E, 0x3F7744FD, 0x3F77FBB8, 0x3F78CCDF, 0x3F79B907,
                          0x3F7AC0C7, 0x3F7BE4BA, 0x3F7D257D, 0x3F7E83B3}};
constexpr float kCoefficients[] = {0.055503614246845245F, 0.24022845923900604F,
                                   0.6931471824645996F};
#else
constexpr int kPartBits = 3;
constexpr I kTable[1] = {{0x3F800000, 0x3F7B95C2, 0x3F7837F0, 0x3F75FED7, 0x3F7504F3, 0x3F75672A,
                          0x3F7744FD, 0x3F7AC0C7}};
constexpr float kCoefficients[] = {0.0554962232708931F, 0.2402576357126236F, 0.6931472420692444F};
#endif

template <int n>
inline void exp2(F (&x)[n]) {
  // 1.5 * 2^23 / kParts: its addition rounds to k, in the low bits; its own bits leave by the
  // shift.
  constexpr int kShift = 23 - kPartBits;
  const F magic = splat(static_cast<float>(3 << (kShift - 1)));
  Lanes normal[n];
  I k[n];
  F r[n];
  F p[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) k[i] = as_int(x[i] + magic);
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
#if defined(__AVX512F__)
    r[i] = less_nearest_32nd(x[i]);
#else
    r[i] = x[i] - (as_float(k[i]) - magic);
#endif
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) normal[i] = not_below(x[i], splat(-125.0F));
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) p[i] = r[i] * kCoefficients[0] + kCoefficients[1];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) x[i] = as_float(lookup(kTable, k[i]) + (k[i] << kShift));
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) p[i] = p[i] * r[i] + kCoefficients[2];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) r[i] *= x[i];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) x[i] = keep(normal[i], p[i] * r[i] + x[i]);
}

#else

/// Minimax polynomial of degree 6 on [-1/2, 1/2] (own fit, 1.9e-9), exponent by integer addition.
template <int n>
inline void exp2(F (&x)[n]) {
  constexpr float kPolynomial[] = {0.0013399930903688073F, 0.009618489071726799F,
                                   0.05550328642129898F,   0.24022646248340607F,
                                   0.6931471824645996F,    1.0F};
  // 1.5 * 2^23: its addition rounds to an integer, in the low bits; its own bits leave by the
  // shift.
  const F magic = splat(12582912.0F);
  Lanes normal[n];
  F shifted[n];
  F r[n];
  F p[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) shifted[i] = x[i] + magic;
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) normal[i] = not_below(x[i], splat(-125.0F));
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) r[i] = shifted[i] - magic;
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) r[i] = x[i] - r[i];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) p[i] = splat(0.0001534581242594868F);
#pragma GCC unroll 8
  for (const float coefficient : kPolynomial) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) p[i] = p[i] * r[i] + coefficient;
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    const I bits = as_int(p[i]) + (as_int(shifted[i]) << 23);
    x[i] = keep(normal[i], as_float(bits | is_nan(p[i])));  // all ones: NaN
  }
}

#endif

inline F exp2(F x) {
  F one[1] = {x};
  exp2(one);
  return one[0];
}

/// tanh x, relative error below 4e-7, NaN for NaN. An odd polynomial near 0 (own minimax fit,
/// 6.8e-9), elsewhere 1 - 2 / (e^2|x| + 1).
inline F tanh(F x) {
  const I sign = splat_int(INT32_MIN);
  const F magnitude = as_float(as_int(x) & ~sign);
  const F x2 = x * x;
  F p = splat(-0.0055151223205029964F);
  p = p * x2 + 0.020469380542635918F;
  p = p * x2 + -0.053688012063503265F;
  p = p * x2 + 0.1333083063364029F;
  p = p * x2 + -0.3333325982093811F;
  const F near = x + x * x2 * p;
  const F bounded = select(at_least(magnitude, splat(20.0F)), splat(20.0F), magnitude);
  const F e = exp2(bounded * 2.885390081777927F);  // 2 log2 e
  const F far = 1.0F - 2.0F / (e + 1.0F);
  const F signed_far = as_float(as_int(far) | (as_int(x) & sign));
  const F y = select(at_least(magnitude, splat(0.625F)), signed_far, near);
  return select(is_nan(x), x, y);
}

}  // namespace
}  // namespace ringattn::cpu
// NOLINTEND(google-build-namespaces, misc-definitions-in-headers)
