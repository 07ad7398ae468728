// SPDX-License-Identifier: Apache-2.0
// A thin layer over the compiler's vectors: 4, 8 or 16 floats, whatever the instruction set of
// this compilation has. Only kernels.cpp includes it, once per instruction set; everything is
// internal to that compilation, so that no linker mixes instruction sets.
#pragma once

#include <cstdint>

// One compilation includes this header, and must share nothing of it with another; x != x is the
// vectors' isnan.
// NOLINTBEGIN(google-build-namespaces, misc-definitions-in-headers, misc-redundant-expression)
namespace ringattn::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 12;  // 12 x 2 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRows = 6;  // 6 x 2 accumulators of 16 registers
#else
constexpr int kLanes = 4;
constexpr int kRows = 4;  // 4 x 2 accumulators of 16 registers, multiplied and added apart
#endif
constexpr int kBytes = kLanes * 4;

using F = float __attribute__((vector_size(kBytes)));
using I = std::int32_t __attribute__((vector_size(kBytes)));
using U = std::uint32_t __attribute__((vector_size(kBytes)));
using H = std::uint16_t __attribute__((vector_size(kBytes / 2)));

// Copies, because memory is aligned to its elements only; they compile to unaligned moves.
inline F load(const float* p) {
  F x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline H load(const std::uint16_t* p) {
  H x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, F x) { __builtin_memcpy(p, &x, sizeof x); }
inline F splat(float x) { return x - F{}; }
inline I splat_int(std::int32_t x) { return x - I{}; }
inline F as_float(I x) { return reinterpret_cast<F>(x); }
inline I as_int(F x) { return reinterpret_cast<I>(x); }
inline F select(I mask, F yes, F no) {
  return as_float((mask & as_int(yes)) | (~mask & as_int(no)));
}
inline F max(F a, F b) { return select(a > b, a, b); }

/// 0, 1, 2, ...
inline I lane_numbers() {
  I lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

/// All ones in lane i if bit i of `bits` is set.
inline I expand(std::uint32_t bits) {
  const I one = splat_int(1) << lane_numbers();
  return (splat_int(static_cast<std::int32_t>(bits)) & one) != 0;
}

/// Fixed order: halves, quarters, ...
inline float sum_lanes(F x) {
  float lane[kLanes];
  store(lane, x);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

inline float max_lanes(F x) {
  float lane[kLanes];
  store(lane, x);
  for (int i = 1; i < kLanes; ++i) lane[0] = lane[0] > lane[i] ? lane[0] : lane[i];
  return lane[0];
}

/// 2^x, relative error below 1.3e-7; 0 below 2^-125, NaN for NaN; x < 128. Minimax polynomial of
/// degree 6 on [-1/2, 1/2] (own fit, 1.9e-9), exponent by integer addition.
inline F exp2(F x) {
  const F magic = splat(12582912.0F);  // 1.5 * 2^23: its addition rounds to an integer
  const I tiny = x < -125.0F;
  const F clamped = select(tiny, splat(-125.0F), x);
  const F shifted = clamped + magic;
  const I n = as_int(shifted) - as_int(magic);
  const F r = clamped - (shifted - magic);
  F p = splat(0.0001534581242594868F);
  p = p * r + 0.0013399930903688073F;
  p = p * r + 0.009618489071726799F;
  p = p * r + 0.05550328642129898F;
  p = p * r + 0.24022646248340607F;
  p = p * r + 0.6931471824645996F;
  p = p * r + 1.0F;
  const F y = as_float(as_int(p) + (n << 23));
  return select(x != x, x, select(tiny, F{}, y));
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
  const F bounded = select(magnitude > 20.0F, splat(20.0F), magnitude);
  const F e = exp2(bounded * 2.885390081777927F);  // 2 log2 e
  const F far = 1.0F - 2.0F / (e + 1.0F);
  const F y = select(magnitude < 0.625F, near, as_float(as_int(far) | (as_int(x) & sign)));
  return select(x != x, x, y);
}

/// 16-bit formats to float, exactly; subnormals, infinities and NaN included.
inline F widen_bf16(const std::uint16_t* p) {
  const U bits = __builtin_convertvector(load(p), U) << 16;
  return reinterpret_cast<F>(bits);
}

inline F widen_f16(const std::uint16_t* p) {
  const U h = __builtin_convertvector(load(p), U);
  const U magnitude = (h & 0x7FFFU) << 13;
  const F scaled = reinterpret_cast<F>(magnitude) * 0x1p112F;  // moves the exponent's bias
  const U special = reinterpret_cast<U>((h & 0x7C00U) == 0x7C00U) & 0x7F800000U;
  const U bits = reinterpret_cast<U>(scaled) | special | (h & 0x8000U) << 16;
  return reinterpret_cast<F>(bits);
}

}  // namespace
}  // namespace ringattn::cpu
// NOLINTEND(google-build-namespaces, misc-definitions-in-headers, misc-redundant-expression)
