// SPDX-License-Identifier: Apache-2.0
// Launches of kernels whose blocks stay: one per multiprocessor.
#pragma once

#include <atomic>
#include <cstdint>

namespace ringattn::cuda::sm90 {

template <auto kKernel, int kThreads, int kBytes, class... Args>
cudaError_t launch_persistent(int tiles, cudaStream_t stream, const Args&... args) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  // Once per kernel and device: calls should cost the host little.
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int multiprocessors = device < kDevices ? known[device].load() : 0;
  if (multiprocessors == 0) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return error;
    error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (error != cudaSuccess) return error;
    if (device < kDevices) known[device] = multiprocessors;
  }
  kKernel<<<static_cast<unsigned>(multiprocessors < tiles ? multiprocessors : tiles), kThreads,
            kBytes, stream>>>(args...);
  return cudaGetLastError();
}

}  // namespace ringattn::cuda::sm90
