// SPDX-License-Identifier: Apache-2.0
// A thin layer over the compiler's vectors: 4, 8 or 16 floats, whatever the instruction set of
// this compilation has. Only the kernels include it, once per instruction set, and it is the only
// place of intrinsics; everything is internal to that compilation, so that no linker mixes
// instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__AVX2__)
// gcc 12 takes the undefined operands inside its own avx512fintrin.h for mistakes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

// One compilation includes this header, and must share nothing of it with another.
// NOLINTBEGIN(google-build-namespaces, misc-definitions-in-headers)
namespace ringattn::cpu {
namespace {

// kRows x kVectors accumulators, with a row of kVectors and one broadcast beside them, fill the
// registers; each step of a product loads kRows broadcasts and kVectors vectors.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 6;  // 24 accumulators of 32 registers: 10 loads for 24 multiply-adds
constexpr int kVectors = 4;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRows = 6;  // 12 of 16: 8 loads for 12
constexpr int kVectors = 2;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kRows = 6;  // 24 of 32
constexpr int kVectors = 4;
#else
constexpr int kLanes = 4;
constexpr int kRows = 4;  // 8 of 16: products and sums apart need registers too
constexpr int kVectors = 2;
#endif
constexpr int kBytes = kLanes * 4;

using F = float __attribute__((vector_size(kBytes)));
using I = std::int32_t __attribute__((vector_size(kBytes)));
using U = std::uint32_t __attribute__((vector_size(kBytes)));
using H = std::uint16_t __attribute__((vector_size(kBytes / 2)));
using D = double __attribute__((vector_size(kBytes)));

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
inline void store(std::uint16_t* p, H x) { __builtin_memcpy(p, &x, sizeof x); }
/// n values, at most kLanes, and zeros.
inline F load_some(const float* p, std::int64_t n) {
  if (n >= kLanes) return load(p);
  F x{};
  __builtin_memcpy(&x, p, static_cast<std::size_t>(n) * sizeof(float));
  return x;
}
inline void store_some(float* p, F x, std::int64_t n) {
  if (n >= kLanes) return store(p, x);
  __builtin_memcpy(p, &x, static_cast<std::size_t>(n) * sizeof(float));
}
inline void store_some(std::uint16_t* p, H x, std::int64_t n) {
  if (n >= kLanes) return store(p, x);
  __builtin_memcpy(p, &x, static_cast<std::size_t>(n) * sizeof(std::uint16_t));
}

/// sum + a * b, in the register of the sum: left to itself gcc 12 keeps two of AVX2's twelve
/// accumulators in memory.
inline F multiply_add(F sum, F a, F b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  return sum;
#else
  return sum + a * b;
#endif
}

inline F splat(float x) { return x - F{}; }
inline I splat_int(std::int32_t x) { return x - I{}; }
inline F as_float(I x) { return reinterpret_cast<F>(x); }
inline I as_int(F x) { return reinterpret_cast<I>(x); }

// ---- lanes chosen by a mask

#if defined(__AVX512F__)
using Lanes = __mmask16;
inline Lanes lanes_of(std::uint32_t bits) { return static_cast<Lanes>(bits); }
inline Lanes at_least(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Lanes not_below(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
inline bool any(Lanes lanes) { return lanes != 0; }
inline bool any_bit(I x) {
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(x)) != 0;
}
inline Lanes is_nan(F x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
inline F select(Lanes lanes, F yes, F no) { return _mm512_mask_blend_ps(lanes, no, yes); }
inline F keep(Lanes lanes, F x) { return _mm512_maskz_mov_ps(lanes, x); }
/// The larger or smaller; the second if either is NaN.
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
#else
using Lanes = I;
/// All ones in lane i if bit i of `bits` is set.
inline Lanes lanes_of(std::uint32_t bits) {
  I one;
  for (int i = 0; i < kLanes; ++i) one[i] = 1 << i;
  return (splat_int(static_cast<std::int32_t>(bits)) & one) != 0;
}
inline Lanes at_least(F a, F b) { return a >= b; }
inline Lanes not_below(F a, F b) { return ~(a < b); }  // NaN: yes
/// Zero in the other lanes.
inline F keep(Lanes lanes, F x) { return as_float(lanes & as_int(x)); }
inline Lanes is_nan(F x) { return x != x; }  // NOLINT(misc-redundant-expression)
#if defined(__AVX2__)
inline bool any(Lanes lanes) { return _mm256_movemask_ps(as_float(lanes)) != 0; }
inline bool any_bit(I x) {
  return _mm256_testz_si256(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(x)) == 0;
}
inline F select(Lanes lanes, F yes, F no) { return _mm256_blendv_ps(no, yes, as_float(lanes)); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
#else
inline bool any_bit(I x) {
  std::int32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= x[i];
  return bits != 0;
}
inline bool any(Lanes lanes) { return any_bit(lanes); }
inline F select(Lanes lanes, F yes, F no) {
  return as_float((lanes & as_int(yes)) | (~lanes & as_int(no)));
}
inline F max(F a, F b) { return select(a > b, a, b); }
inline F min(F a, F b) { return select(a < b, a, b); }
#endif
#endif

// ---- across lanes

template <int... kIndex>
inline void interleave(F a, F b, F& low, F& high, std::integer_sequence<int, kIndex...>) {
  low = __builtin_shufflevector(a, b, (kIndex / 2 + kIndex % 2 * kLanes)...);
  high = __builtin_shufflevector(a, b, (kLanes / 2 + kIndex / 2 + kIndex % 2 * kLanes)...);
}

/// Lane i combines the lanes of x[i], in a fixed order.
template <class Combine>
inline F reduce_rows(F (&x)[kLanes], Combine combine) {
#pragma GCC unroll 4
  for (int count = kLanes; count > 1; count /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < count / 2; ++i) {
      F low;
      F high;
      interleave(x[i], x[i + count / 2], low, high, std::make_integer_sequence<int, kLanes>());
      x[i] = combine(low, high);
    }
  }
  return x[0];
}

inline F sum_rows(F (&x)[kLanes]) {
  return reduce_rows(x, [](F a, F b) { return a + b; });
}

inline F max_rows(F (&x)[kLanes]) {
  return reduce_rows(x, [](F a, F b) { return max(a, b); });
}

/// Rows to columns: log2(kLanes) perfect shuffles of the whole block.
inline void transpose(F (&x)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    F y[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      interleave(x[i], x[i + kLanes / 2], y[2 * i], y[2 * i + 1],
                 std::make_integer_sequence<int, kLanes>());
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) x[i] = y[i];
  }
}

template <int... kIndex>
inline D half_of(F x, bool upper, std::integer_sequence<int, kIndex...>) {
  using Half = float __attribute__((vector_size(kBytes / 2)));
  const Half half = upper ? __builtin_shufflevector(x, x, (kLanes / 2 + kIndex)...)
                          : __builtin_shufflevector(x, x, kIndex...);
  return __builtin_convertvector(half, D);
}

/// The lower and the upper lanes in float64.
inline D lower(F x) { return half_of(x, false, std::make_integer_sequence<int, kLanes / 2>()); }
inline D upper(F x) { return half_of(x, true, std::make_integer_sequence<int, kLanes / 2>()); }

// ---- tables in registers

#if defined(__AVX512F__)
/// Lane i takes element index[i] mod 2 kLanes of both vectors.
inline I lookup(const I (&table)[2], I index) {
  return reinterpret_cast<I>(_mm512_permutex2var_epi32(reinterpret_cast<__m512i>(table[0]),
                                                       reinterpret_cast<__m512i>(index),
                                                       reinterpret_cast<__m512i>(table[1])));
}
/// x less its nearest multiple of 1 / 32; 0 for infinities.
inline F less_nearest_32nd(F x) { return _mm512_reduce_ps(x, 5 << 4); }
#elif defined(__AVX2__)
/// Lane i takes element index[i] mod kLanes.
inline I lookup(const I (&table)[1], I index) {
  return reinterpret_cast<I>(_mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(table[0]),
                                                         reinterpret_cast<__m256i>(index)));
}
#endif

// ---- 16-bit formats

/// 16-bit formats to float, exactly; subnormals, infinities and NaN included.
inline F widen_bf16(const std::uint16_t* p) {
  const U bits = __builtin_convertvector(load(p), U) << 16;
  return reinterpret_cast<F>(bits);
}

inline F widen_f16(const std::uint16_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  const U h = __builtin_convertvector(load(p), U);
  const U magnitude = (h & 0x7FFFU) << 13;
  const F scaled = reinterpret_cast<F>(magnitude) * 0x1p112F;  // moves the exponent's bias
  const U special = reinterpret_cast<U>((h & 0x7C00U) == 0x7C00U) & 0x7F800000U;
  const U bits = reinterpret_cast<U>(scaled) | special | (h & 0x8000U) << 16;
  return reinterpret_cast<F>(bits);
#endif
}

/// float to 16-bit formats, to nearest, ties to even; dtype.h has the same for one value.
inline H narrow_bf16(F x) {
  const auto bits = reinterpret_cast<U>(x);
  const auto nan = reinterpret_cast<U>((bits & 0x7FFFFFFFU) > 0x7F800000U);
  const U rounded = (bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16;
  return __builtin_convertvector((nan & (bits >> 16 | 0x40U)) | (~nan & rounded), H);
}

inline H narrow_f16(F x) {
  const auto bits = reinterpret_cast<U>(x);
  const U magnitude = bits & 0x7FFFFFFFU;
  const auto small = reinterpret_cast<U>(magnitude < 0x38800000U);   // subnormal: below 2^-14
  const auto large = reinterpret_cast<U>(magnitude >= 0x477FF000U);  // infinity: from 65520
  const auto nan = reinterpret_cast<U>(magnitude > 0x7F800000U);
  const U normal = ((magnitude + 0xFFFU + (magnitude >> 13 & 1U)) >> 13) - ((127U - 15U) << 10);
  const F units = reinterpret_cast<F>(magnitude) * 0x1p24F + 0x1p23F;  // rounds to even
  const U subnormal = reinterpret_cast<U>(units) & 0x7FFFU;
  U h = (small & subnormal) | (~small & normal);
  h = (large & (0x7C00U | (nan & 0x200U))) | (~large & h);
  return __builtin_convertvector(h | (bits >> 16 & 0x8000U), H);
}

// ---- pairs of bfloat16

#if defined(__AVX512BF16__)
#define RINGATTN_PAIRS 1

/// sum + the products of both halves of each word.
inline F dot(F sum, F a, F b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

/// Words of two ones.
inline F ones() { return as_float(splat_int(0x3F803F80)); }

/// The 2 * kLanes values of `low`, then `high`, rounded.
inline F round_to_bf16(F low, F high) {
  return reinterpret_cast<F>(_mm512_cvtne2ps_pbh(high, low));
}

/// Words: `even` in the lower halves, `odd` in the upper ones.
inline F interleave_bf16(F even, F odd) {
  const auto order = reinterpret_cast<__m512i>(
      U{0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007, 0x180008,
        0x190009, 0x1A000A, 0x1B000B, 0x1C000C, 0x1D000D, 0x1E000E, 0x1F000F});
  const auto both = reinterpret_cast<__m512i>(round_to_bf16(even, odd));
  return reinterpret_cast<F>(_mm512_permutexvar_epi16(order, both));
}

inline void store_half(std::uint16_t* p, F x) {
  const __m256bh narrow = _mm512_cvtneps_pbh(x);
  __builtin_memcpy(p, &narrow, sizeof narrow);
}

/// Each x as a sum of two values, within 2^-16: words of high parts and of low ones in turn. High
/// parts are cut, not rounded: a finite x never has an infinite one.
inline F split_bf16(F x) {
  const I order{0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15};
  const F high = as_float(as_int(x) & splat_int(-65536));
  return reinterpret_cast<F>(_mm512_permutexvar_epi32(
      reinterpret_cast<__m512i>(order), reinterpret_cast<__m512i>(round_to_bf16(high, x - high))));
}
#endif

}  // namespace
}  // namespace ringattn::cpu
// NOLINTEND(google-build-namespaces, misc-definitions-in-headers)
