// SPDX-License-Identifier: Apache-2.0
// What this machine's multipliers can do at most, in registers, for one instruction set and a
// number of threads: float32 fused multiply-adds, or bfloat16 dot products. It measures; it knows
// nothing of attention.
#pragma once

#include <string>

#include "ringattn/tensor.h"

namespace ringattn::support {

/// GFLOP/s of `threads` threads together, each doing nothing but fused multiply-adds on vectors of
/// `isa` ("avx512...", "avx2...", anything else: what the compiler makes of plain code); for
/// kBFloat16 and "avx512_bf16", dot products of pairs. One sample of 1 or 2 ms: clocks change, so
/// take one beside whatever is to be compared with it.
double peak_sample(const std::string& isa, int threads, DType dtype);

}  // namespace ringattn::support
