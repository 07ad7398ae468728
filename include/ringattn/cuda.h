// SPDX-License-Identifier: Apache-2.0
// What only a build with CUDA has. Device tensors need nothing from here: give views with
// Device::kCuda, and a cudaStream_t in Stream::handle.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ringattn/communicator.h"

namespace ringattn {

/// A ring of n ranks inside this process whose tensors are in GPU memory that all of them can
/// read: one GPU with a stream per rank. Each rank is driven by its own thread. Transfers hand over
/// pointers; streams wait for each other, the host only for its peers' calls.
std::vector<std::unique_ptr<Communicator>> make_cuda_local_ring(
    int n, std::chrono::milliseconds timeout = kDefaultTimeout);

/// A GPU that this process sees. 0 and "unknown" are what the driver does not tell.
struct CudaDevice {
  std::string name;
  std::string architecture;  // "sm_90"
  int multiprocessors = 0;
  std::int64_t memory_bytes = 0;
  std::string driver;    // its version, as the management library says it
  std::string cuda;      // the version of the runtime in this build, "13.0"
  int sm_clock_mhz = 0;  // at this moment
  int sm_clock_max_mhz = 0;
  int memory_clock_max_mhz = 0;
};

/// In the order of CUDA's numbers, so the first is the one that is used unless a program chooses
/// another; empty without a usable GPU. Errors of the driver are Error(kInternal).
std::vector<CudaDevice> cuda_devices();

}  // namespace ringattn
