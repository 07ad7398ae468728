// SPDX-License-Identifier: Apache-2.0
// What the C functions of this library share: tensors, and errors as texts.
#pragma once

#include <exception>
#include <initializer_list>
#include <string>

#include "ringattn/tensor.h"

namespace ringattn {

inline std::string last_error;

inline TensorView tensor(void* data, DType dtype, std::initializer_list<std::int64_t> shape) {
  TensorView view(data, dtype, shape);
  view.device = Device::kCuda;
  return view;
}

/// Runs `work`; on an exception keeps its text and returns 1.
template <class Work>
int guarded(const Work& work) {
  try {
    work();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
}

}  // namespace ringattn
