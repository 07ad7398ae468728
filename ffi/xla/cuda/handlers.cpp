// SPDX-License-Identifier: Apache-2.0
// The handlers of NVIDIA GPUs: they enqueue on XLA's stream, wait for nothing, and take memory that
// XLA lends for as long as the stream needs it. One device holds the whole sequence: the rank of a
// ring is known on the device only, and which block is at hand the host must know.
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/check.h"
#include "cuda/device_memory.h"
#include "workspace.h"
#include "xla/cuda/handlers.h"
#include "xla/passes.h"

namespace ringattn::ffi {
namespace {

namespace xffi = xla::ffi;

/// Kernels are launched on the calling thread's device: it is this one for the scope.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    cuda::check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device) cuda::check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = before_ != device;
  }
  ~CurrentDevice() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

/// The backend has no work for the host's threads.
class NoThreads final : public Executor {
 public:
  int threads() const noexcept override { return 1; }
  void run(std::int64_t n, TaskRef task) override {
    for (std::int64_t i = 0; i < n; ++i) task(i);
  }
};

class Gpu final : public Place {
 public:
  Gpu(void* stream, xffi::ScratchAllocator& lender) : stream_{stream}, lender_(lender) {}
  Device device() const override { return Device::kCuda; }
  const Memory& memory() const override { return cuda::device_memory(); }
  Stream stream() const override { return stream_; }
  Executor& executor() override { return threads_; }
  std::span<std::byte> scratch(std::size_t bytes) override {
    if (lent_.size() >= bytes && lent_.data() != nullptr) return lent_;
    // XLA promises an alignment of 16 bytes.
    const auto data = lender_.Allocate(bytes + Carver::kAlignment);
    if (!data) {
      throw Error(ErrorCode::kInternal,
                  "workspace: the GPU has no " + std::to_string(bytes) + " bytes of memory left");
    }
    auto at = reinterpret_cast<std::uintptr_t>(*data);
    at = (at + Carver::kAlignment - 1) / Carver::kAlignment * Carver::kAlignment;
    lent_ = {reinterpret_cast<std::byte*>(at), bytes};
    return lent_;
  }

 private:
  Stream stream_;
  xffi::ScratchAllocator& lender_;
  NoThreads threads_;
  std::span<std::byte> lent_;
};

void refuse_rings(const ringattn_config& config) {
  if (config.world == 1) return;
  throw Error(ErrorCode::kUnsupported,
              "axis_name: expected None or an axis of size 1 on GPUs, where one device holds the "
              "whole sequence, got a ring of " +
                  std::to_string(config.world) + "; rings of JAX devices are of CPUs only");
}

/// When a program is compiled, so that what is refused does not wait for data. Newer versions of
/// XLA show operands without memory here, older ones none.
xffi::Error check(Words config, Words bitmap, std::int64_t sinks_rank, std::int64_t offset,
                  std::int64_t first, std::int64_t last, std::int64_t packed, std::int64_t adds,
                  xffi::RemainingArgs, xffi::RemainingRets) {
  return run([&] {
    const HopCall call(config, bitmap, sinks_rank, offset, first, last, packed, adds);
    refuse_rings(call.config);
    Problem problem = problem_of(call.config, 1);
    problem.device = Device::kCuda;
    const Plan plan(problem, options_of(call.config), 0, 1, true);
  });
}

template <auto kPass>
xffi::Error on_gpu(void* stream, std::int32_t device, xffi::ScratchAllocator lender, Words config,
                   Words bitmap, std::int64_t sinks_rank, std::int64_t offset, std::int64_t first,
                   std::int64_t last, std::int64_t packed, std::int64_t adds,
                   xffi::RemainingArgs args, xffi::RemainingRets rets) {
  return run([&] {
    const HopCall call(config, bitmap, sinks_rank, offset, first, last, packed, adds);
    refuse_rings(call.config);
    const CurrentDevice current(device);
    Gpu gpu(stream, lender);
    kPass(gpu, call, args, rets);
  });
}

auto binding() {
  return with_attributes(xffi::Ffi::Bind()
                             .Ctx<xffi::PlatformStream<void*>>()
                             .Ctx<xffi::DeviceOrdinal>()
                             .Ctx<xffi::ScratchAllocator>())
      .RemainingArgs()
      .RemainingRets();
}

}  // namespace
}  // namespace ringattn::ffi

XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_cuda_check, ringattn::ffi::check,
                              ringattn::ffi::with_attributes(xla::ffi::Ffi::BindInstantiate())
                                  .RemainingArgs()
                                  .RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_cuda_forward_hop,
                              ringattn::ffi::on_gpu<ringattn::ffi::forward_hop>,
                              ringattn::ffi::binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_cuda_backward_hop,
                              ringattn::ffi::on_gpu<ringattn::ffi::backward_hop>,
                              ringattn::ffi::binding());

int32_t ringattn_has_cuda(void) { return 1; }
