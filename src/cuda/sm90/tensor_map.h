// SPDX-License-Identifier: Apache-2.0
// Descriptions of tensors for the copy engine of Hopper.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "ringattn/tensor.h"

namespace ringattn::cuda::sm90 {

/// [batch, seq, heads, dim] of a 16-bit type in device memory; strides in elements.
struct MappedTensor {
  const void* data;
  DType dtype;
  std::int64_t batch, seq, heads, dim;
  std::int64_t batch_stride, seq_stride, head_stride;
};

/// May the copy engine read it? Its address and its strides must be multiples of 16 bytes.
bool can_map(const MappedTensor& tensor);

/// Boxes of `rows` rows of one head and 64 columns, in the 128-byte swizzle; what lies outside of
/// the tensor is read as 0. Coordinates: (column, row, head, batch).
cudaError_t map_tensor(const MappedTensor& tensor, int rows, CUtensorMap& map);

}  // namespace ringattn::cuda::sm90
