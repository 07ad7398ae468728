// SPDX-License-Identifier: Apache-2.0
// In place of handlers.cpp in a build without CUDA.
#include "xla/cuda/handlers.h"

namespace {

namespace xffi = xla::ffi;

xffi::Error refusal() {
  return {
      xffi::ErrorCode::kUnimplemented,
      "ring_attention: this build of ringattn has no kernels for GPUs; build one where nvcc is, "
      "with pip install . -C cmake.define.RINGATTN_CUDA=ON, or put the arrays on CPU devices"};
}

xffi::Error refuse(xffi::RemainingArgs, xffi::RemainingRets, xffi::Dictionary) { return refusal(); }

template <xffi::ExecutionStage kStage>
auto binding() {
  return xffi::Ffi::Bind<kStage>().RemainingArgs().RemainingRets().Attrs();
}
constexpr auto kExecute = xffi::ExecutionStage::kExecute;

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_cuda_check, refuse,
                              binding<xla::ffi::ExecutionStage::kInstantiate>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_cuda_forward_hop, refuse, binding<kExecute>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_cuda_backward_hop, refuse, binding<kExecute>());

int32_t ringattn_has_cuda(void) { return 0; }
