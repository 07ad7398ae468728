// SPDX-License-Identifier: Apache-2.0
// Scalar conversions between float formats, rounding to nearest even, exactly once. The fast
// vector versions live in the backends; these are the definition, on hosts and devices.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "ringattn/mask.h"
#include "ringattn/tensor.h"

namespace ringattn {

constexpr bool is_float(DType t) noexcept {
  return t == DType::kFloat32 || t == DType::kBFloat16 || t == DType::kFloat16 ||
         t == DType::kFloat64;
}

RINGATTN_HOST_DEVICE inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

RINGATTN_HOST_DEVICE inline std::uint16_t float_to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (x != x) return static_cast<std::uint16_t>(bits >> 16 | 0x40U);  // stays a NaN
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

RINGATTN_HOST_DEVICE inline float f16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t exponent = bits >> 10 & 0x1FU;
  const std::uint32_t fraction = bits & 0x3FFU;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
  }
  const std::uint32_t wide = exponent == 31 ? 255U : exponent + (127U - 15U);
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

RINGATTN_HOST_DEVICE inline std::uint16_t float_to_f16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000U);
  const float magnitude = std::fabs(x);
  if (x != x) return static_cast<std::uint16_t>(sign | 0x7E00U);
  if (magnitude >= 65520.0F) return static_cast<std::uint16_t>(sign | 0x7C00U);
  if (magnitude < 0x1p-14F) {  // subnormal: units of 2^-24; the addition rounds to even
    const float units = magnitude * 0x1p24F + 0x1p23F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(units) & 0x7FFFU));
  }
  const std::uint32_t rounded = std::bit_cast<std::uint32_t>(magnitude) + 0xFFFU +
                                (std::bit_cast<std::uint32_t>(magnitude) >> 13 & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded >> 13) - ((127U - 15U) << 10)));
}

/// Rounds to float so that a second rounding to a narrower format is still correct.
RINGATTN_HOST_DEVICE inline float round_to_odd(double x) {
  const auto f = static_cast<float>(x);
  if (static_cast<double>(f) == x || x != x || std::isinf(f)) return f;
  auto bits = std::bit_cast<std::uint32_t>(f);
  if ((bits & 1U) != 0) return f;
  // f is even and inexact: take the odd neighbour on x's side.
  const bool away = std::fabs(static_cast<double>(f)) < std::fabs(x);
  bits = away ? bits + 1 : bits - 1;
  return std::bit_cast<float>(bits);
}

/// Element `i` of memory of a float or integer dtype.
RINGATTN_HOST_DEVICE inline double load(DType dtype, const void* data, std::int64_t i) {
  switch (dtype) {
    case DType::kFloat32: return static_cast<const float*>(data)[i];
    case DType::kBFloat16: return bf16_to_float(static_cast<const std::uint16_t*>(data)[i]);
    case DType::kFloat16: return f16_to_float(static_cast<const std::uint16_t*>(data)[i]);
    case DType::kFloat64: return static_cast<const double*>(data)[i];
    case DType::kInt32: return static_cast<const std::int32_t*>(data)[i];
    case DType::kInt64: return static_cast<double>(static_cast<const std::int64_t*>(data)[i]);
    case DType::kBool: return static_cast<const std::uint8_t*>(data)[i] != 0 ? 1.0 : 0.0;
  }
  return 0.0;
}

/// Element `i` of int32 or int64 positions.
RINGATTN_HOST_DEVICE inline std::int64_t load_position(DType dtype, const void* data,
                                                       std::int64_t i) {
  return dtype == DType::kInt64 ? static_cast<const std::int64_t*>(data)[i]
                                : static_cast<const std::int32_t*>(data)[i];
}

/// Stores x rounded once to a float dtype.
RINGATTN_HOST_DEVICE inline void store(DType dtype, void* data, std::int64_t i, double x) {
  switch (dtype) {
    case DType::kFloat32: static_cast<float*>(data)[i] = static_cast<float>(x); break;
    case DType::kBFloat16:
      static_cast<std::uint16_t*>(data)[i] = float_to_bf16(round_to_odd(x));
      break;
    case DType::kFloat16:
      static_cast<std::uint16_t*>(data)[i] = float_to_f16(round_to_odd(x));
      break;
    case DType::kFloat64: static_cast<double*>(data)[i] = x; break;
    default: break;  // integers are never results
  }
}

/// Offset in elements of [i, j, k, l] in a strided view (missing dimensions: 0).
template <class View>
RINGATTN_HOST_DEVICE std::int64_t offset(const View& view, std::int64_t i, std::int64_t j = 0,
                                         std::int64_t k = 0, std::int64_t l = 0) {
  return i * view.strides[0] + j * view.strides[1] + k * view.strides[2] + l * view.strides[3];
}

}  // namespace ringattn
