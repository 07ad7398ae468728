// SPDX-License-Identifier: Apache-2.0
// Every CUDA call is checked here.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "ringattn/communicator.h"
#include "ringattn/error.h"

namespace ringattn::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Error(ErrorCode::kInternal, std::string(what) + ": " + cudaGetErrorString(error));
}

inline cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

}  // namespace ringattn::cuda
