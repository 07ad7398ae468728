// SPDX-License-Identifier: Apache-2.0
// What the conformance tests share: a problem with its tensors, to be changed by hand and run.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "support/conformance.h"
#include "support/data.h"

namespace ringattn::support {

/// A case with its data and options, all of which a test may change before run().
struct Bench {
  Case c;
  CaseData data;
  Problem problem;
  Options options;

  explicit Bench(const std::string& text)
      : c(parse_case(text)),
        data(make_data(c)),
        problem(make_problem(c)),
        options(make_options(c, data)) {}

  RingResult run(const std::string& backend, int ring, bool exact = false) const {
    Options chosen = options;
    chosen.backend = backend;
    RingSettings settings;
    settings.ring = ring;
    settings.backward = c.backward;
    if (exact) settings.out_dtype = settings.grad_dtype = DType::kFloat64;
    if (exact) settings.lse_dtype = DType::kFloat64;
    return run_on_ring(problem, chosen, data.inputs(), settings);
  }

  Expected expected() const { return make_expected(problem, options, data.inputs(), c.backward); }
};

/// Element [i, j, k, l] of a tensor of up to four dimensions.
inline std::size_t index_of(const HostTensor& t, std::int64_t i, std::int64_t j = 0,
                            std::int64_t k = 0, std::int64_t l = 0) {
  const ConstTensorView v = t.view();
  return static_cast<std::size_t>(i * v.strides[0] + j * v.strides[1] + k * v.strides[2] +
                                  l * v.strides[3]);
}

/// The name of a test that runs one backend on one ring.
inline std::string backend_and_ring(
    const testing::TestParamInfo<std::tuple<const char*, int>>& parameters) {
  return std::get<0>(parameters.param) + ("_" + std::to_string(std::get<1>(parameters.param)));
}

}  // namespace ringattn::support
