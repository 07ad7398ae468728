// SPDX-License-Identifier: Apache-2.0
// The handlers of CPU devices, on XLA's own threads.
#include <algorithm>
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
RINGATTN_EXPORT XLA_FFI_Error* ringattn_xla_accumulate(XLA_FFI_CallFrame* call_frame);
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
                    std::int64_t adds, xffi::RemainingArgs args, xffi::RemainingRets rets) {
  return run([&] {
    Host host(pool);
    kPass(host, HopCall(config, bitmap, sinks_rank, offset, first, last, packed, adds), args, rets);
  });
}

/// Adds what lies one behind the other in `part` to totals, where `there` is not 0. XLA's own sum
/// would be a second buffer. All have the leading dimensions of `there`.
xffi::Error accumulate(xffi::ThreadPool pool, xffi::AnyBuffer there, xffi::AnyBuffer part,
                       xffi::RemainingArgs totals, xffi::RemainingRets rets) {
  return run([&] {
    XlaThreads threads(pool);
    const auto* flags = static_cast<const std::int32_t*>(there.untyped_data());
    const auto indices = static_cast<std::int64_t>(there.element_count());
    const auto* parts = static_cast<const float*>(part.untyped_data());
    const auto stride =
        static_cast<std::int64_t>(part.element_count()) / std::max<std::int64_t>(indices, 1);
    std::int64_t offset = 0;
    for (std::size_t t = 0; t < totals.size(); ++t) {
      const auto in = *totals.get<xffi::AnyBuffer>(t);
      xffi::Result<xffi::AnyBuffer> out = *rets.get<xffi::AnyBuffer>(t);
      auto* sums = static_cast<float*>(out->untyped_data());
      if (sums != in.untyped_data()) std::memcpy(sums, in.untyped_data(), in.size_bytes());
      const auto n =
          static_cast<std::int64_t>(in.element_count()) / std::max<std::int64_t>(indices, 1);
      constexpr std::int64_t kPiece = std::int64_t{1} << 15;
      const std::int64_t pieces = ceil_div(n, kPiece);
      threads.run(indices * pieces, [&](std::int64_t task) {
        const std::int64_t index = task / pieces;
        const std::int64_t begin = task % pieces * kPiece;
        if (flags[index] == 0) return;
        float* to = sums + index * n;
        const float* from = parts + index * stride + offset;
        for (std::int64_t i = begin; i < std::min(begin + kPiece, n); ++i) to[i] += from[i];
      });
      offset += n;
    }
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
XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_accumulate, ringattn::ffi::accumulate,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ringattn_xla_agree, ringattn::ffi::agree,
    xla::ffi::Ffi::Bind().Arg<xla::ffi::AnyBuffer>().RemainingArgs().RemainingRets());

int32_t ringattn_xla_ffi_minor(void) { return XLA_FFI_API_MINOR; }
