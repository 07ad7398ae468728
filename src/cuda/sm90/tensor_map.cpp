// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/tensor_map.h"

#include <algorithm>

namespace ringattn::cuda::sm90 {
namespace {

constexpr std::int64_t kElementBytes = 2;
constexpr std::int64_t kMaxStride = std::int64_t{1} << 40;  // bytes, of the copy engine
constexpr std::int64_t kMaxExtent = std::int64_t{1} << 31;

/// The driver's function, found without linking the driver.
decltype(&cuTensorMapEncodeTiled) encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &result);
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) function = nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return found;
}

/// A stride that is never used may be anything; the copy engine wants it legal.
std::int64_t bytes(std::int64_t stride, std::int64_t extent) {
  return extent > 1 ? stride * kElementBytes : 16;
}

bool legal(std::int64_t stride, std::int64_t extent) {
  const std::int64_t b = bytes(stride, extent);
  return b > 0 && b % 16 == 0 && b < kMaxStride;  // 0 would be a tensor that is broadcast
}

}  // namespace

bool can_map(const MappedTensor& t) {
  return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.dim % 8 == 0 &&
         t.seq < kMaxExtent && legal(t.seq_stride, t.seq) && legal(t.head_stride, t.heads) &&
         legal(t.batch_stride, t.batch) && encoder() != nullptr;
}

cudaError_t map_tensor(const MappedTensor& t, int rows, CUtensorMap& map) {
  // A tensor without rows is never read, but a map of it must be legal.
  const auto extent = [](std::int64_t n) {
    return static_cast<cuuint64_t>(std::max<std::int64_t>(n, 1));
  };
  const cuuint64_t extents[4] = {extent(t.dim), extent(t.seq), extent(t.heads), extent(t.batch)};
  const cuuint64_t strides[3] = {static_cast<cuuint64_t>(bytes(t.seq_stride, t.seq)),
                                 static_cast<cuuint64_t>(bytes(t.head_stride, t.heads)),
                                 static_cast<cuuint64_t>(bytes(t.batch_stride, t.batch))};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(rows), 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUtensorMapDataType type = t.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto encode = [&] {
    return encoder()(&map, type, 4, const_cast<void*>(t.data), extents, strides, box, steps,
                     CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  if (encode() == CUDA_SUCCESS) return cudaSuccess;
  // The driver wants a current context, which a host thread has from its first call of the runtime
  // that needs one: this may be the thread's first.
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error != cudaSuccess) return error;
  return encode() == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace ringattn::cuda::sm90
