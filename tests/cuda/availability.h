// SPDX-License-Identifier: Apache-2.0
#pragma once

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

}  // namespace ringattn::support
