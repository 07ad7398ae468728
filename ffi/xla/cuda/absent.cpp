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

xffi::Error check(xffi::Dictionary) { return refusal(); }
xffi::Error hop(xffi::RemainingArgs, xffi::RemainingRets, xffi::Dictionary) { return refusal(); }

auto binding() { return xffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_cuda_check, check,
                              xla::ffi::Ffi::BindInstantiate().Attrs());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_cuda_forward_hop, hop, binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_cuda_backward_hop, hop, binding());

int32_t ringattn_has_cuda(void) { return 0; }
