// SPDX-License-Identifier: Apache-2.0
// Checks of the tensors of one call against the plan. Every message names the argument, what was
// expected and what came.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan.h"
#include "ringattn/attention.h"

namespace ringattn {

/// How softmax_aux is to be read.
enum class SinkForm : std::uint8_t { kNone, kPerHead, kShared, kPerHeadMany };

/// [H]: per head. [S], S != H: shared. [H, S]: per head, many. Throws for any other shape.
SinkForm sink_form(const ConstTensorView& sinks, std::int64_t heads);

void check(const Plan& plan, const ForwardArgs& args);
void check(const Plan& plan, const BackwardArgs& args);

/// "[2, 8, 4]".
std::string shape_text(const ConstTensorView& view);

}  // namespace ringattn
