// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "ringattn/attention.h"

namespace ringattn::support {

/// Why nothing can run on a GPU here; empty: it can.
inline std::string cuda_absent() {
  for (const BackendInfo& backend : backends()) {
    if (backend.name == "cuda") return backend.available ? "" : backend.reason;
  }
  return "this build has no CUDA backend";
}

/// Tests that need a GPU, and say why they are skipped without.
template <class Base = testing::Test>
class OnAGpu : public Base {
 protected:
  void SetUp() override {
    const std::string reason = cuda_absent();
    if (!reason.empty()) GTEST_SKIP() << "no test on a GPU: " << reason;
  }
};

}  // namespace ringattn::support
