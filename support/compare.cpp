// SPDX-License-Identifier: Apache-2.0
#include "support/compare.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "dtype.h"

namespace ringattn::support {
namespace {

// Rounding errors add up by chance, in the naive program too: another order of the same sums may
// have twice its luck and no more.
constexpr double kFactor = 2.0;

// A maximum over few rows is one draw of a heavy tail: twice more.
constexpr double kFactorOfMaxOnFewRows = 4.0;
constexpr std::int64_t kFewRows = 64;

// On N ranks sums are cut in N pieces and merged in float32: the error stays what it was on one,
// but for the luck of another order.
constexpr double kRingFactor = 1.5;

// The floor in float32: exp, log and tanh of a vector library are off by up to 2 ulp each where
// libm's are right, then comes one division and one rounding. It matters where the naive program
// is right by chance: one key, weights of exactly 1.
constexpr double kFloorRoundings = 4.0;
constexpr double kEps32 = 0x1p-23;

// Where terms cancel (dP - delta is 0 if a row sees one key) only the terms' size says what a
// rounding is worth: one eps of it.
constexpr double kCancelledRoundings = 1.0;

// The backward takes exp(s - lse) from a float32 lse: half an ulp of s and half an ulp of lse are
// a relative error of up to eps * |s| of every weight.
constexpr double kScoreRoundings = 1.0;

// The GPU's instruction for tanh, which serves bf16, is off by this much of its result (PTX ISA,
// tanh.approx.f32). lse is off by no more than its worst score. Scores are wrong by chance, so the
// rms is not granted it.
constexpr double kFastTanh = 0x1p-11;

// In bf16 and f16 a weight and a result are each rounded once (half an eps each); the naive
// program may be lucky in one element, and the tensor not. Over a whole tensor luck averages out:
// the rms of a small one allows for so few such elements, that of a large one for none.
constexpr double kUnluckyElements = 4.0;
constexpr std::int64_t kAverageLuck = 1024;  // elements

double eps_of(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16: return 0x1p-7;
    case DType::kFloat16: return 0x1p-10;
    default: return kEps32;
  }
}

/// Below this a format's spacing no longer shrinks with the value: half of it is one rounding.
double smallest_step(DType dtype) {
  switch (dtype) {
    case DType::kFloat16: return 0x1p-24;
    default: return 0x1p-133;  // bf16 subnormals; those of float32 are finer still
  }
}

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", x);
  return text;
}

std::string element_name(const HostTensor& t, std::int64_t i) {
  std::string index;
  for (std::size_t d = t.shape().size(); d-- > 0;) {
    const std::int64_t extent = t.shape()[d];
    index = std::to_string(i % extent) + (index.empty() ? "" : ", ") + index;
    i /= extent;
  }
  return "[" + index + "]";
}

double at(const HostTensor& t, std::int64_t i) { return load(t.dtype(), t.data(), i); }

/// NaN, inf and -inf where float64 has something not finite: -inf (a row that saw nothing) must
/// be exactly that; otherwise a NaN may be an inf, as an overflow comes before or after a NaN.
bool same_pattern(double actual, double truth) {
  if (std::isfinite(truth)) return std::isfinite(actual);
  if (std::isinf(truth) && truth < 0.0) return actual == truth;
  return !std::isfinite(actual);
}

/// Shape and pattern; the message, or nothing.
std::string pattern_error(const HostTensor& actual, const HostTensor& truth) {
  if (actual.shape() != truth.shape()) return "has another shape than the float64 result";
  for (std::int64_t i = 0; i < truth.elements(); ++i) {
    if (!same_pattern(at(actual, i), at(truth, i))) {
      return element_name(truth, i) + " is " + number(at(actual, i)) + " where float64 gives " +
             number(at(truth, i));
    }
  }
  return {};
}

ErrorStats floor_of(const ErrorModel& model, DType result, double largest_value, std::int64_t n) {
  const double arithmetic =
      kEps32 * ((kFloorRoundings + kScoreRoundings * model.score) * largest_value +
                kCancelledRoundings * model.magnitude);
  const double coarse = model.rounded_once ? eps_of(model.operands) : eps_of(result);
  const double size = model.independent_rows ? model.magnitude : largest_value;
  const double unlucky = coarse * size + smallest_step(result);
  const double share = n >= kAverageLuck
                           ? 0.0
                           : kUnluckyElements / static_cast<double>(std::max<std::int64_t>(n, 1));
  return {arithmetic + unlucky * std::min(1.0, std::sqrt(share)),
          arithmetic + unlucky + model.score_error};
}

double largest(const HostTensor& t) {
  double magnitude = 0.0;
  for (std::int64_t i = 0; i < t.elements(); ++i) {
    const double x = std::fabs(at(t, i));
    if (std::isfinite(x)) magnitude = std::max(magnitude, x);
  }
  return magnitude;
}

void judge(Comparison& c) {
  if (c.error.rms <= c.limit.rms && c.error.max <= c.limit.max) return;
  c.ok = false;
  c.message = c.tensor + ": rms error " + number(c.error.rms) + " (limit " + number(c.limit.rms) +
              "), max " + number(c.error.max) + " (limit " + number(c.limit.max) + "); naive rms " +
              number(c.naive.rms) + ", max " + number(c.naive.max) + "; largest value " +
              number(c.magnitude);
}

}  // namespace

ErrorStats measure(const HostTensor& actual, const HostTensor& truth) {
  ErrorStats stats;
  double sum = 0.0;
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < truth.elements(); ++i) {
    const double error = std::fabs(at(actual, i) - at(truth, i));
    if (!std::isfinite(error)) continue;
    stats.max = std::max(stats.max, error);
    sum += error * error;
    ++count;
  }
  if (count > 0) stats.rms = std::sqrt(sum / static_cast<double>(count));
  return stats;
}

Comparison compare(const std::string& name, const HostTensor& actual, const HostTensor& truth,
                   const HostTensor& naive, const ErrorModel& model) {
  Comparison c;
  c.tensor = name;
  const std::string pattern = pattern_error(actual, truth);
  if (!pattern.empty()) {
    c.ok = false;
    c.message = name + ": " + pattern;
    return c;
  }
  c.error = measure(actual, truth);
  c.naive = measure(naive, truth);
  c.magnitude = largest(truth);
  const ErrorStats floor = floor_of(model, actual.dtype(), c.magnitude, truth.elements());
  c.limit.rms = kFactor * c.naive.rms + floor.rms;
  c.limit.max = (model.rows < kFewRows ? kFactorOfMaxOnFewRows : kFactor) * c.naive.max + floor.max;
  judge(c);
  return c;
}

Comparison compare_ring(const std::string& name, const HostTensor& ring, const HostTensor& one,
                        const HostTensor& truth, const ErrorModel& model) {
  Comparison c;
  c.tensor = name;
  const std::string pattern = pattern_error(ring, truth);
  if (!pattern.empty()) {
    c.ok = false;
    c.message = name + ": " + pattern;
    return c;
  }
  c.error = measure(ring, truth);
  c.naive = measure(one, truth);
  c.magnitude = largest(truth);
  const ErrorStats floor = floor_of(model, ring.dtype(), c.magnitude, truth.elements());
  c.limit.rms = kRingFactor * c.naive.rms + floor.rms;
  c.limit.max = HUGE_VAL;  // the maximum is compared with the naive program's
  judge(c);
  if (!c.ok) c.message += " (naive: here the ring of one)";
  return c;
}

ErrorModel error_model(const std::string& name, const Problem& p, const Magnitudes& m) {
  ErrorModel model;
  model.operands = p.dtype;
  model.rounded_once = name != "lse";
  const bool keys = name == "dkey" || name == "dvalue";
  model.rows = p.batch * (keys ? p.key_seq : p.query_seq);
  if (name == "dsoftmax_aux") {
    model.rows = 1;
    model.independent_rows = true;
  }
  if (name == "out") model.magnitude = m.out;
  if (name == "lse") model.magnitude = m.lse;
  if (name == "dquery") model.magnitude = m.dquery;
  if (name == "dkey") model.magnitude = m.dkey;
  if (name == "dvalue") model.magnitude = m.dvalue;
  if (name == "dsoftmax_aux") model.magnitude = m.dsinks;
  if (name.starts_with('d')) model.score = m.score;
  const bool fast_tanh = m.capped && p.device == Device::kCuda && p.dtype == DType::kBFloat16;
  if (name == "lse" && fast_tanh) model.score_error = kFastTanh * m.score;
  return model;
}

}  // namespace ringattn::support
