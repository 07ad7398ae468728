// SPDX-License-Identifier: Apache-2.0
// The operands and results of one handler call, taken in order. Each may have leading dimensions
// from vmap, those of size 1 serving every index.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ringattn/error.h"
#include "ringattn/tensor.h"
#include "xla/ffi/api/ffi.h"

namespace ringattn::ffi {

/// One operand without its leading dimensions: a pointer for each index of those.
class Operand {
 public:
  Operand() = default;

  /// Throws kInternal if the buffer has another rank than `lead` leading dimensions and `rank`.
  Operand(const char* name, Device device, const xla::ffi::AnyBuffer& buffer, std::size_t lead,
          std::size_t rank);

  bool present() const { return data_ != nullptr || !dims_.empty(); }
  std::int64_t dim(std::size_t d) const { return dims_[lead_ + d]; }
  DType dtype() const { return dtype_; }
  std::int64_t elements() const { return elements_; }  // of one index

  /// The memory of the index whose coordinates are `at`.
  void* data(const std::vector<std::int64_t>& at) const;

  /// Every byte 255, of every index.
  void fill_with_nan() const;

  /// A contiguous view of all dimensions (at most four).
  TensorView view(const std::vector<std::int64_t>& at) const;

  const std::vector<std::int64_t>& dims() const { return dims_; }

 private:
  std::byte* data_ = nullptr;
  Device device_ = Device::kCpu;
  DType dtype_ = DType::kFloat32;
  std::int64_t width_ = 0;  // bytes of an element
  std::size_t lead_ = 0;
  std::int64_t elements_ = 1;
  std::vector<std::int64_t> dims_;
};

/// Takes operands, then results, in the order in which the front end lists them.
class Operands {
 public:
  Operands(Device device, xla::ffi::RemainingArgs args, xla::ffi::RemainingRets rets);

  Operand take(const char* name, std::size_t rank);
  Operand take_if(bool there, const char* name, std::size_t rank) {
    return there ? take(name, rank) : Operand();
  }
  /// A number without leading dimensions.
  Operand take_common_if(bool there, const char* name);
  Operand result(const char* name, std::size_t rank) { return next_result(name, lead(), rank); }

  /// A result without leading dimensions.
  Operand common_result(const char* name, std::size_t rank) { return next_result(name, 0, rank); }

  /// Throws kInternal if something was not taken.
  void finish() const;

  /// Calls work(at) for the coordinates of every leading index.
  template <class Work>
  void for_each_index(Work work) const {
    std::vector<std::int64_t> at(sizes_.size(), 0);
    for (const std::int64_t size : sizes_) {
      if (size == 0) return;
    }
    for (bool more = true; more;) {
      work(at);
      more = false;
      for (std::size_t d = sizes_.size(); d-- > 0 && !more;) {
        at[d] = at[d] + 1 < sizes_[d] ? at[d] + 1 : 0;
        more = at[d] != 0;
      }
    }
  }

 private:
  std::size_t lead() const { return sizes_.size(); }
  Operand next_result(const char* name, std::size_t lead, std::size_t rank);

  Device device_;
  xla::ffi::RemainingArgs args_;
  xla::ffi::RemainingRets rets_;
  std::size_t taken_ = 0;
  std::size_t given_ = 0;
  std::vector<std::int64_t> sizes_;  // of the leading dimensions
};

}  // namespace ringattn::ffi
