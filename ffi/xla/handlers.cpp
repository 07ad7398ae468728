// SPDX-License-Identifier: Apache-2.0
// The handlers of CPU devices, on XLA's own threads.
#include <cstring>
#include <optional>

#include "xla/failures.h"
#include "xla/passes.h"
#include "xla/scratch.h"
#include "xla/threads.h"

// Declared before they are defined, so that they, and nothing else of XLA's headers, are exported.
extern "C" {
RINGATTN_EXPORT XLA_FFI_Error* ringattn_xla_forward_hop(XLA_FFI_CallFrame* call_frame);
RINGATTN_EXPORT XLA_FFI_Error* ringattn_xla_backward_hop(XLA_FFI_CallFrame* call_frame);
RINGATTN_EXPORT XLA_FFI_Error* ringattn_xla_agree(XLA_FFI_CallFrame* call_frame);
}

namespace ringattn::ffi {
namespace {

namespace xffi = xla::ffi;

class Host final : public Place {
 public:
  explicit Host(xffi::ThreadPool pool) : threads_(pool) {}
  Device device() const override { return Device::kCpu; }
  const Memory& memory() const override { return host_memory(); }
  Stream stream() const override { return {}; }
  Executor& executor() override { return threads_; }
  std::span<std::byte> scratch(std::size_t bytes) override {
    if (!scratch_ || scratch_->span().size() < bytes) {
      scratch_.reset();
      scratch_.emplace(bytes);
    }
    return scratch_->span();
  }

 private:
  XlaThreads threads_;
  std::optional<Scratch> scratch_;
};

template <auto kPass>
xffi::Error on_host(xffi::ThreadPool pool, Words config, Words bitmap, std::int64_t sinks_rank,
                    std::int64_t offset, std::int64_t first, std::int64_t last, std::int64_t packed,
                    xffi::RemainingArgs args, xffi::RemainingRets rets) {
  return run([&] {
    Host host(pool);
    kPass(host, HopCall(config, bitmap, sinks_rank, offset, first, last, packed), args, rets);
  });
}

/// The end of a pass: what all ranks have together, or the error of the one that failed.
xffi::Error agree(xffi::AnyBuffer status, xffi::RemainingArgs args, xffi::RemainingRets rets) {
  if (*static_cast<const std::int32_t*>(status.untyped_data()) != 0) {
    return xffi::Error::Internal("ring_attention: " + remembered_failure());
  }
  for (std::size_t i = 0; i < args.size(); ++i) {
    const auto from = *args.get<xffi::AnyBuffer>(i);
    xffi::Result<xffi::AnyBuffer> to = *rets.get<xffi::AnyBuffer>(i);
    if (to->untyped_data() == from.untyped_data()) continue;
    std::memcpy(to->untyped_data(), from.untyped_data(), from.size_bytes());
  }
  return xffi::Error::Success();
}

auto binding() {
  return with_attributes(xffi::Ffi::Bind().Ctx<xffi::ThreadPool>()).RemainingArgs().RemainingRets();
}

}  // namespace
}  // namespace ringattn::ffi

XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_forward_hop,
                              ringattn::ffi::on_host<ringattn::ffi::forward_hop>,
                              ringattn::ffi::binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_backward_hop,
                              ringattn::ffi::on_host<ringattn::ffi::backward_hop>,
                              ringattn::ffi::binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ringattn_xla_agree, ringattn::ffi::agree,
    xla::ffi::Ffi::Bind().Arg<xla::ffi::AnyBuffer>().RemainingArgs().RemainingRets());

int32_t ringattn_xla_ffi_minor(void) { return XLA_FFI_API_MINOR; }
