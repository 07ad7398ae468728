// SPDX-License-Identifier: Apache-2.0
// softmax_aux for the naive program: its three forms, written out once more, so that the library's
// own code has something to be compared with.
#pragma once

#include <cstdint>
#include <vector>

#include "io/host_tensor.h"
#include "ringattn/tensor.h"

namespace ringattn::support {

/// One logit per head; -inf where there is none.
std::vector<double> head_sinks(const ConstTensorView& sinks, std::int64_t heads);

/// d softmax_aux, float32, from one gradient per head.
HostTensor spread_to_sinks(const ConstTensorView& sinks, const std::vector<float>& dhead);

}  // namespace ringattn::support
