// SPDX-License-Identifier: Apache-2.0
// What this machine's multipliers can do at most: float32 fused multiply-adds in registers, for
// one instruction set and a number of threads. It measures; it knows nothing of attention.
#pragma once

#include <string>

namespace ringattn::support {

/// GFLOP/s of `threads` threads together, each doing nothing but fused multiply-adds on vectors of
/// `isa` ("avx512...", "avx2...", anything else: what the compiler makes of plain code). The best
/// of a few short runs.
double peak_gflops(const std::string& isa, int threads);

}  // namespace ringattn::support
