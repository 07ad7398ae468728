// SPDX-License-Identifier: Apache-2.0
// What the GPUs of this process are. Versions and present clocks are the management library's
// (NVML), which comes with the driver: it is looked for at run time and may be missing.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <array>

#include "cuda/check.h"
#include "ringattn/cuda.h"

namespace ringattn::cuda {
namespace {

/// The four functions of NVML that are needed; its ABI is stable, its header not always there.
class Management {
 public:
  Management() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) return;
    const auto init = find<int()>("nvmlInit_v2");
    ready_ = init != nullptr && init() == 0;
  }
  Management(const Management&) = delete;
  Management& operator=(const Management&) = delete;
  ~Management() {
    if (!ready_) return;
    if (const auto shutdown = find<int()>("nvmlShutdown")) (void)shutdown();
  }

  std::string driver() const {
    std::array<char, 80> version{};
    const auto get = ready_ ? find<int(char*, unsigned)>("nvmlSystemGetDriverVersion") : nullptr;
    if (get == nullptr || get(version.data(), version.size()) != 0) return "unknown";
    return version.data();
  }

  int sm_clock_mhz(const char* bus) const {
    if (!ready_) return 0;
    const auto open = find<int(const char*, void**)>("nvmlDeviceGetHandleByPciBusId_v2");
    const auto clock = find<int(void*, int, unsigned*)>("nvmlDeviceGetClockInfo");
    constexpr int kSmClock = 1;
    void* device = nullptr;
    unsigned mhz = 0;
    if (open == nullptr || clock == nullptr || open(bus, &device) != 0) return 0;
    return clock(device, kSmClock, &mhz) == 0 ? static_cast<int>(mhz) : 0;
  }

 private:
  template <class Function>
  Function* find(const char* name) const {
    return reinterpret_cast<Function*>(dlsym(library_, name));
  }

  void* library_;  // stays loaded
  bool ready_ = false;
};

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "an attribute of the GPU");
  return value;
}

CudaDevice describe(int device, const Management& management) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "the properties of the GPU");
  std::array<char, 32> bus{};
  check(cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), device),
        "where the GPU is");
  CudaDevice d;
  d.name = properties.name;
  d.architecture = "sm_" + std::to_string(properties.major * 10 + properties.minor);
  d.multiprocessors = properties.multiProcessorCount;
  d.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  d.driver = management.driver();
  d.cuda = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  d.sm_clock_mhz = management.sm_clock_mhz(bus.data());
  d.sm_clock_max_mhz = attribute(cudaDevAttrClockRate, device) / 1000;
  d.memory_clock_max_mhz = attribute(cudaDevAttrMemoryClockRate, device) / 1000;
  return d;
}

}  // namespace
}  // namespace ringattn::cuda

namespace ringattn {

std::vector<CudaDevice> cuda_devices() {
  static const cuda::Management management;
  std::vector<CudaDevice> devices;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return devices;
  for (int device = 0; device < count; ++device) {
    devices.push_back(cuda::describe(device, management));
  }
  return devices;
}

}  // namespace ringattn
