// SPDX-License-Identifier: Apache-2.0
// NumPy's .npy, versions 1 to 3: little-endian, C order, plain dtypes. bfloat16 is `<V2`, as
// ml_dtypes writes it. Objects, structures, big-endian and Fortran order are refused.
#pragma once

#include "io/tensor_entry.h"

namespace ringattn {

/// Parses and checks the header; the data must fill the rest of the file exactly.
TensorEntry open_npy(const File& file);

/// A file's first bytes, of version 1.0; the data follows.
std::string npy_head(const TensorShape& tensor);

}  // namespace ringattn
