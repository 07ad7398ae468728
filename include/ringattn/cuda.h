// SPDX-License-Identifier: Apache-2.0
// What only a build with CUDA has. Device tensors need nothing from here: give views with
// Device::kCuda, and a cudaStream_t in Stream::handle.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "ringattn/communicator.h"

namespace ringattn {

/// A ring of n ranks inside this process whose tensors are in GPU memory that all of them can
/// read: one GPU with a stream per rank. Each rank is driven by its own thread. Transfers hand over
/// pointers; streams wait for each other, the host only for its peers' calls.
std::vector<std::unique_ptr<Communicator>> make_cuda_local_ring(
    int n, std::chrono::milliseconds timeout = kDefaultTimeout);

}  // namespace ringattn
