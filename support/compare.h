// SPDX-License-Identifier: Apache-2.0
// THE one place of tolerances: is a tensor as near to float64 as the naive same-dtype program is?
// Every test, bench and the tool's `check` asks here; nobody writes a number of their own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/host_tensor.h"
#include "support/naive.h"

namespace ringattn::support {

/// Differences from float64 over the elements that are finite in both.
struct ErrorStats {
  double rms = 0.0;
  double max = 0.0;
};

struct Comparison {
  std::string tensor;
  bool ok = true;
  ErrorStats error;  // of the tensor
  ErrorStats naive;  // of the naive program
  ErrorStats limit;
  double magnitude = 0.0;  // largest |float64 value|
  std::string message;     // one line; empty if ok
};

/// What the limits depend on besides the tensors.
struct ErrorModel {
  DType operands = DType::kFloat32;  // the problem's dtype
  bool rounded_once = true;          // P and dS were rounded to it (not so for lse)
  double magnitude = 0.0;            // of the tensor in Magnitudes
  bool independent_rows = false;     // a sum over rows: the rounding of `out` is worth magnitude
  double score = 0.0;                // backward: largest |s|; forward: 0
  double score_error = 0.0;          // lse: of any one score, beyond float32
  std::int64_t rows = 0;             // batch rows * sequence rows
};

/// First the pattern of what is not finite, then the error. Shapes must be equal; `truth` is
/// float64, or float32 rounded once from it.
Comparison compare(const std::string& name, const HostTensor& actual, const HostTensor& truth,
                   const HostTensor& naive, const ErrorModel& model);

/// The error on many ranks against that on one: it must not grow with the ring.
Comparison compare_ring(const std::string& name, const HostTensor& ring, const HostTensor& one,
                        const HostTensor& truth, const ErrorModel& model);

/// Model of each tensor of a problem, by the name that files give it: out, lse, dquery, ...
ErrorModel error_model(const std::string& name, const Problem& problem,
                       const Magnitudes& magnitudes);

ErrorStats measure(const HostTensor& actual, const HostTensor& truth);

}  // namespace ringattn::support
