// SPDX-License-Identifier: Apache-2.0
// The tensors of a case: random, reproducible on every machine, rounded to the case's dtype. It
// knows the grammar's meaning and nothing of rings.
#pragma once

#include "io/host_tensor.h"
#include "ringattn/attention.h"
#include "support/cases.h"
#include "support/ring_run.h"

namespace ringattn::support {

/// Tensors that a case does not have are default-constructed (no shape).
struct CaseData {
  HostTensor query, key, value, dout, dlse, sinks;
  HostTensor q_segment_ids, kv_segment_ids;  // [B, S] int32
  HostTensor q_positions, kv_positions;      // [S] int64
  HostTensor mask;                           // bool [Sq, Sk] or [H, Sq, Sk]

  /// Views of all of them but the mask, which is in make_options().
  RingInputs inputs() const;
};

/// What decides who sees whom, without the floats: for plans. Throws kInvalidArgument for a case
/// whose tensors no machine holds.
CaseData make_structure(const Case& c);

/// Everything.
CaseData make_data(const Case& c);

Problem make_problem(const Case& c);

/// The case's options; `data` gives the dense mask. Backend and executor stay at their defaults.
Options make_options(const Case& c, const CaseData& data);

}  // namespace ringattn::support
