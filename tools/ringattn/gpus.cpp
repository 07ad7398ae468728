// SPDX-License-Identifier: Apache-2.0
#include "gpus.h"

#if defined(RINGATTN_HAVE_CUDA)
#include "ringattn/cuda.h"
#endif

namespace ringattn::tool {

#if defined(RINGATTN_HAVE_CUDA)

bool built_with_cuda() { return true; }

nlohmann::json gpus_json() {
  nlohmann::json gpus = nlohmann::json::array();
  for (const CudaDevice& gpu : cuda_devices()) {
    gpus.push_back({{"kind", "gpu"},
                    {"name", gpu.name},
                    {"architecture", gpu.architecture},
                    {"multiprocessors", gpu.multiprocessors},
                    {"memory_bytes", gpu.memory_bytes},
                    {"driver", gpu.driver},
                    {"cuda", gpu.cuda},
                    {"sm_clock_mhz", gpu.sm_clock_mhz},
                    {"sm_clock_max_mhz", gpu.sm_clock_max_mhz},
                    {"memory_clock_max_mhz", gpu.memory_clock_max_mhz}});
  }
  return gpus;
}

nlohmann::json sm_clock_mhz() {
  const auto gpus = cuda_devices();
  return gpus.empty() || gpus[0].sm_clock_mhz == 0 ? nlohmann::json()
                                                   : nlohmann::json(gpus[0].sm_clock_mhz);
}

#else

bool built_with_cuda() { return false; }
nlohmann::json gpus_json() { return nlohmann::json::array(); }
nlohmann::json sm_clock_mhz() { return nullptr; }

#endif

}  // namespace ringattn::tool
