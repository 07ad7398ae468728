// SPDX-License-Identifier: Apache-2.0
// Borrowed, strided views of memory that the caller owns. No view allocates, copies or frees.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

namespace ringattn {

enum class DType : std::uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kInt32, kInt64, kBool };

/// Bytes of one element.
constexpr std::int64_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64: return 8;
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kBFloat16:
    case DType::kFloat16: return 2;
    case DType::kBool: return 1;
  }
  return 0;
}

/// "f32", "bf16", "f16", "f64", "i32", "i64", "bool".
constexpr const char* name(DType dtype) noexcept {
  switch (dtype) {
    case DType::kFloat32: return "f32";
    case DType::kBFloat16: return "bf16";
    case DType::kFloat16: return "f16";
    case DType::kFloat64: return "f64";
    case DType::kInt32: return "i32";
    case DType::kInt64: return "i64";
    case DType::kBool: return "bool";
  }
  return "?";
}

enum class Device : std::uint8_t { kCpu, kCuda };

/// A view of up to four dimensions. Strides count elements; they may be anything as long as the
/// last dimension is contiguous (stride 1) wherever it is a head_dim. A default view is "absent".
template <class Void>
struct BasicTensorView {
  static constexpr int kMaxRank = 4;

  Void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = -1;  // -1: absent
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> strides{};
  Device device = Device::kCpu;

  constexpr BasicTensorView() = default;

  /// A contiguous (row-major) view.
  BasicTensorView(Void* data_in, DType dtype_in, std::initializer_list<std::int64_t> shape_in)
      : data(data_in), dtype(dtype_in), rank(0) {
    for (std::int64_t extent : shape_in) {
      if (rank < kMaxRank) shape[static_cast<std::size_t>(rank++)] = extent;
    }
    std::int64_t stride = 1;
    for (int d = rank - 1; d >= 0; --d) {
      strides[static_cast<std::size_t>(d)] = stride;
      stride *= shape[static_cast<std::size_t>(d)];
    }
  }

  /// A view of mutable memory reads as a view of constant memory.
  template <class Other, class = std::enable_if_t<std::is_void_v<Other> && std::is_const_v<Void>>>
  constexpr BasicTensorView(const BasicTensorView<Other>& other)  // NOLINT(google-explicit-*)
      : data(other.data),
        dtype(other.dtype),
        rank(other.rank),
        shape(other.shape),
        strides(other.strides),
        device(other.device) {}

  constexpr bool present() const noexcept { return rank >= 0; }
  constexpr std::int64_t dim(int d) const noexcept { return shape[static_cast<std::size_t>(d)]; }
  constexpr std::int64_t stride(int d) const noexcept {
    return strides[static_cast<std::size_t>(d)];
  }
  constexpr std::int64_t elements() const noexcept {
    std::int64_t n = rank < 0 ? 0 : 1;
    for (int d = 0; d < rank; ++d) n *= shape[static_cast<std::size_t>(d)];
    return n;
  }
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

}  // namespace ringattn
