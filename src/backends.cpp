// SPDX-License-Identifier: Apache-2.0
// The ordered list of backends, best first, and the choice among them.
#include <array>
#include <string>

#include "backend.h"
#include "cpu/cpu.h"
#include "reference/reference.h"
#if defined(RINGATTN_HAVE_CUDA)
#include "cuda/cuda_backend.h"
#endif

namespace ringattn {

std::span<const Backend* const> all_backends() {
  static const CpuBackend cpu;
  static const ReferenceBackend reference;
#if defined(RINGATTN_HAVE_CUDA)
  static const CudaBackend cuda;
  static const std::array<const Backend*, 3> list = {&cuda, &cpu, &reference};
#else
  static const std::array<const Backend*, 2> list = {&cpu, &reference};
#endif
  return list;
}

ChosenBackend choose_backend(const Problem& problem, const Options& options) {
  const bool automatic = options.backend == "auto";
  std::string reasons;
  std::string names;
  for (const Backend* backend : all_backends()) {
    const std::string name(backend->name());
    names += names.empty() ? name : ", " + name;
    // "cpu:avx2" asks the cpu backend for one instruction set.
    if (!automatic && options.backend != name && !options.backend.starts_with(name + ":")) continue;
    auto reason = backend->why_absent();
    if (!reason) reason = backend->why_not(problem, options);
    if (!reason) {
      return {backend, automatic ? reasons + "the best of the list that takes this problem"
                                 : "asked for by name"};
    }
    reasons += name + ": " + *reason + "; ";
  }
#if !defined(RINGATTN_HAVE_CUDA)
  if (options.backend == "cuda") {
    throw Error(ErrorCode::kUnsupported, "backend: cuda is not in this build; there are " + names);
  }
#endif
  if (reasons.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                "backend: expected auto, " + names + ", got " + options.backend);
  }
  throw Error(ErrorCode::kUnsupported, "backend: none takes this problem: " + reasons);
}

std::vector<BackendInfo> backends() {
  std::vector<BackendInfo> list;
  for (const Backend* backend : all_backends()) {
    const auto absent = backend->why_absent();
    list.push_back(
        {std::string(backend->name()), !absent, absent.value_or(""), backend->instruction_sets()});
  }
#if !defined(RINGATTN_HAVE_CUDA)
  list.push_back({"cuda", false, "this build has no CUDA backend", {}});
#endif
  return list;
}

}  // namespace ringattn
