// SPDX-License-Identifier: Apache-2.0
// What every build exports for GPUs; one without CUDA refuses when a program is compiled. Declared
// before they are defined, so that they, and nothing else of XLA's headers, are exported.
#pragma once

#include "ringattn.h"
#include "xla/ffi/api/ffi.h"

extern "C" {
RINGATTN_EXPORT XLA_FFI_Error* ringattn_xla_cuda_check(XLA_FFI_CallFrame* call_frame);
RINGATTN_EXPORT XLA_FFI_Error* ringattn_xla_cuda_forward_hop(XLA_FFI_CallFrame* call_frame);
RINGATTN_EXPORT XLA_FFI_Error* ringattn_xla_cuda_backward_hop(XLA_FFI_CallFrame* call_frame);
}
