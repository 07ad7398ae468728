// SPDX-License-Identifier: Apache-2.0
// A tensor that owns its memory: what files are read into and test data is made in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <new>
#include <string>
#include <vector>

#include "ringattn/error.h"
#include "ringattn/tensor.h"

namespace ringattn {

/// Memory that begins with a cache line, as that of PyTorch and JAX does.
template <class T>
struct OnCacheLines {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  OnCacheLines() = default;
  template <class Other>
  explicit OnCacheLines(const OnCacheLines<Other>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* at, std::size_t) { ::operator delete(at, kLine); }
  friend bool operator==(const OnCacheLines&, const OnCacheLines&) = default;
};

/// Contiguous, row-major, zero-initialised. Sizes must be checked before (no overflow here).
class HostTensor {
 public:
  HostTensor() = default;
  HostTensor(DType dtype, std::vector<std::int64_t> shape)
      : dtype_(dtype),
        shape_(std::move(shape)),
        bytes_(static_cast<std::size_t>(elements() * size_of(dtype))) {}

  DType dtype() const { return dtype_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::int64_t elements() const {
    std::int64_t n = 1;
    for (std::int64_t extent : shape_) n *= extent;
    return n;
  }
  std::byte* data() { return bytes_.data(); }
  const std::byte* data() const { return bytes_.data(); }
  std::size_t size_bytes() const { return bytes_.size(); }

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(bytes_.data());
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(bytes_.data());
  }

  /// Throws kInvalidArgument above TensorView::kMaxRank dimensions.
  TensorView view() { return make_view<TensorView>(bytes_.data()); }
  ConstTensorView view() const { return make_view<ConstTensorView>(bytes_.data()); }

 private:
  template <class View, class Data>
  View make_view(Data* data) const {
    if (shape_.size() > View::kMaxRank) {
      throw Error(ErrorCode::kInvalidArgument,
                  "expected at most 4 dimensions, got " + std::to_string(shape_.size()));
    }
    View v;
    v.data = data;
    v.dtype = dtype_;
    v.rank = static_cast<int>(shape_.size());
    std::int64_t stride = 1;
    for (std::size_t d = shape_.size(); d-- > 0;) {
      v.shape[d] = shape_[d];
      v.strides[d] = stride;
      stride *= shape_[d];
    }
    return v;
  }

  DType dtype_ = DType::kFloat32;
  std::vector<std::int64_t> shape_;
  std::vector<std::byte, OnCacheLines<std::byte>> bytes_;
};

using TensorMap = std::map<std::string, HostTensor>;

}  // namespace ringattn
