// SPDX-License-Identifier: Apache-2.0
// A rank's tensor: plain, or "guarded": strided, every byte that is not an element filled with NaN
// patterns, and a check that they are still there. It is memory only; who fills it is the caller's
// business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory.h"
#include "ringattn/tensor.h"

namespace ringattn::support {

/// How a tensor is strided between canaries. kOdd: rows begin at every alignment, the least
/// convenient that the API allows. kAligned: at multiples of 16 bytes, as fast kernels want them.
enum class Guard : std::uint8_t { kNone, kOdd, kAligned };

class LocalTensor {
 public:
  LocalTensor() = default;

  /// Every byte is 0xFF: a NaN in any float format, padding as a segment id. So an element that
  /// nobody writes shows up as a NaN in what should be finite.
  LocalTensor(DType dtype, std::vector<std::int64_t> shape, Guard guard);

  /// Gives it a copy in another memory than the host's, which argument() then shows.
  void reside(const Memory& memory);

  /// Fetches what was written there.
  void fetch();

  /// What a call is given: the tensor here, or its copy.
  TensorView argument();

  bool present() const { return view_.present(); }
  TensorView view() { return view_; }
  ConstTensorView view() const { return view_; }

  /// Are all bytes outside the elements as the constructor left them?
  bool intact() const;

 private:
  std::vector<std::byte> bytes_;
  TensorView view_;
  Allocation copy_;
};

}  // namespace ringattn::support
