// SPDX-License-Identifier: Apache-2.0
// One verdict on one problem: a backend on a ring against float64, bit for bit against itself,
// and within its memory. Tests, benches and the tool's `check` all judge here.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "support/cases.h"
#include "support/compare.h"
#include "support/ring_run.h"

namespace ringattn::support {

struct CheckSettings {
  std::string backend = "auto";
  std::shared_ptr<Executor> executor;        // none: the default one
  std::shared_ptr<Executor> other_executor;  // of another number of threads, for the second run
  std::chrono::milliseconds timeout = kDefaultTimeout;
  std::optional<DType> out_dtype;  // none: the problem's
  std::optional<DType> grad_dtype;
  Guard guard = Guard::kOdd;
  bool twice = true;         // run again: the same bits
  bool against_one = false;  // on one rank too: the error must not grow with the ring

  /// The options and settings of the run that is judged.
  Options chosen(const Options& options) const;
  RingSettings run(bool backward) const;
};

/// The results of the backend "reference" on one rank, in float64 throughout, on the CPU whatever
/// the problem's device is.
RingResult float64_truth(const Problem& problem, const Options& options, const RingInputs& inputs,
                         bool backward);

struct CheckReport {
  std::vector<Comparison> tensors;    // in the order out, lse, dquery, dkey, dvalue, dsoftmax_aux
  std::vector<std::string> failures;  // what is no error of a tensor: bits, counts
  RingResult result;

  bool ok() const;
  std::string message() const;  // what failed, one line each
  double max_error() const;     // largest difference from float64 of any tensor
};

/// What a problem's results are measured by: the same for every ring, layout and backend.
struct Expected {
  RingResult truth;
  NaiveResult naive;
  std::int64_t pairs = 0;  // visible ones, over batch and query heads
};
Expected make_expected(const Problem& problem, const Options& options, const RingInputs& inputs,
                       bool backward);

/// The verdict on results that are there, those of a second run (or null) beside them.
CheckReport judge(const Expected& expected, const Problem& problem, const Options& options,
                  const RingInputs& inputs, RingResult result, const RingResult* again);

/// Throws what the library throws; a difference is a report. A forward that is not asked for lse is
/// judged too: it may keep its weights to fewer bits.
CheckReport check_against(const Expected& expected, const Problem& problem, const Options& options,
                          const RingInputs& inputs, int ring, bool backward,
                          const CheckSettings& settings);

/// The two together.
CheckReport check_problem(const Problem& problem, const Options& options, const RingInputs& inputs,
                          int ring, bool backward, const CheckSettings& settings);

CheckReport check_case(const Case& c, const CheckSettings& settings);

/// The result as files name its tensors; those that are not there are left out.
struct NamedResult {
  const char* name;
  HostTensor RingResult::*member;
  HostTensor NaiveResult::*naive;
};
inline constexpr NamedResult kResults[] = {
    {"out", &RingResult::out, &NaiveResult::out},
    {"lse", &RingResult::lse, &NaiveResult::lse},
    {"dquery", &RingResult::dquery, &NaiveResult::dquery},
    {"dkey", &RingResult::dkey, &NaiveResult::dkey},
    {"dvalue", &RingResult::dvalue, &NaiveResult::dvalue},
    {"dsoftmax_aux", &RingResult::dsinks, &NaiveResult::dsinks},
};

/// The first tensor whose bits differ; empty if none.
std::string different_bits(const RingResult& a, const RingResult& b, bool dquery_too = true);

/// Does the contract promise the bits of dquery from run to run?
bool repeats_dquery(const Problem& problem, const Options& options);

}  // namespace ringattn::support
