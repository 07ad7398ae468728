// SPDX-License-Identifier: Apache-2.0
// The yardstick of the error measure: plain single-device attention in the case's own dtype.
// Inputs in dtype, products and sums in float32, P rounded to dtype before PV and dS before its
// products, every result rounded once. No tiles, no ring, no online softmax, nothing shared with
// the library's backends but the mask's definition and the scalar conversions.
#pragma once

#include "io/host_tensor.h"
#include "ringattn/attention.h"
#include "support/ring_run.h"

namespace ringattn::support {

/// What rounding errors are relative to where terms cancel (Higham, Accuracy and Stability of
/// Numerical Algorithms, 2nd ed., sections 2.8 and 3.1): for each tensor the largest size of what
/// is summed up in any of its elements. Within a query row, where errors are common to all terms,
/// the sizes add up; rows err independently, and their squares add up.
struct Magnitudes {
  double score = 0.0;  // largest |s| or |lse|
  double out = 0.0;
  double lse = 0.0;
  double dquery = 0.0;
  double dkey = 0.0;
  double dvalue = 0.0;
  double dsinks = 0.0;
  bool capped = false;  // scores went through tanh
};

struct NaiveResult {
  HostTensor out, lse;                      // lse float32
  HostTensor dquery, dkey, dvalue, dsinks;  // dsinks float32
  Magnitudes magnitudes;
};

/// `inputs` are global. The result is in the problem's dtype.
NaiveResult naive_attention(const Problem& problem, const Options& options,
                            const RingInputs& inputs, bool backward);

}  // namespace ringattn::support
