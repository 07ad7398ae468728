// SPDX-License-Identifier: Apache-2.0
#include "support/naive.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dtype.h"
#include "support/naive_floats.h"
#include "support/naive_sinks.h"
#include "support/visibility.h"

namespace ringattn::support {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

float round_to(DType dtype, float x) {
  if (dtype == DType::kBFloat16) return bf16_to_float(float_to_bf16(x));
  if (dtype == DType::kFloat16) return f16_to_float(float_to_f16(x));
  return x;
}

/// dot(a, b), and the same of absolute values.
struct Dot {
  float value = 0.0F;
  double magnitude = 0.0;
};

Dot dot(const float* a, const float* b, std::int64_t n) {
  Dot sum;
  for (std::int64_t d = 0; d < n; ++d) {
    sum.value += a[d] * b[d];
    sum.magnitude += std::fabs(static_cast<double>(a[d]) * static_cast<double>(b[d]));
  }
  return sum;
}

double square(double x) { return x * x; }

void raise(double& largest, double x) {
  if (std::isfinite(x) && x > largest) largest = x;
}

class Naive {
 public:
  Naive(const Problem& problem, const Options& options, const RingInputs& in)
      : p_(problem),
        in_(in),
        see_(options, in),
        q_(in.query),
        k_(in.key),
        v_(in.value),
        do_(in.dout),
        sinks_(head_sinks(in.sinks, problem.query_heads)),
        scale_(options.softmax_scale.value_or(
            static_cast<float>(1.0 / std::sqrt(static_cast<double>(problem.head_dim))))),
        cap_(options.logits_soft_cap.value_or(0.0F)) {}

  NaiveResult run(bool backward);

 private:
  float score(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j, float& slope) const {
    const float x = scale_ * dot(q_.at(b, i, h), k_.at(b, j, h / group()), q_.dim).value;
    slope = 1.0F;
    if (cap_ == 0.0F) return x;
    const float t = std::tanh(x / cap_);
    slope = 1.0F - t * t;
    return cap_ * t;
  }
  std::int64_t group() const { return p_.query_heads / p_.kv_heads; }
  void forward_row(std::int64_t b, std::int64_t h, std::int64_t i);
  void backward_row(std::int64_t b, std::int64_t h, std::int64_t i);
  void backward_pair(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j, float lse,
                     Dot delta);
  void store_gradients();

  const Problem& p_;
  const RingInputs& in_;
  Visibility see_;
  Floats q_, k_, v_, do_;
  std::vector<double> sinks_;  // [H], -inf: none
  float scale_;
  float cap_;
  NaiveResult result_;
  std::vector<std::int64_t> keys_;
  std::vector<float> weights_;
  std::vector<float> dq_, dk_, dv_, dsink_;  // float32 sums; dq_ of one row
  std::vector<double> dq_abs_, dk_sq_, dv_sq_, dsink_sq_;
};

void Naive::forward_row(std::int64_t b, std::int64_t h, std::int64_t i) {
  see_.row(b, h, i, keys_);
  const auto sink = static_cast<float>(sinks_[static_cast<std::size_t>(h)]);
  weights_.assign(keys_.size(), 0.0F);
  float max = sink;
  for (std::size_t n = 0; n < keys_.size(); ++n) {
    float slope;
    weights_[n] = score(b, h, i, keys_[n], slope);
    raise(result_.magnitudes.score, std::fabs(weights_[n]));
    max = std::max(max, weights_[n]);
  }
  float sum = 0.0F;
  for (float& w : weights_) sum += w = std::exp(w - max);
  if (sink != -kInf) sum += std::exp(sink - max);
  const std::int64_t row = (b * p_.query_heads + h) * p_.query_seq + i;
  const bool nothing = keys_.empty() || sink == kInf;
  const float lse = nothing ? sink : max + std::log(sum);
  result_.lse.as<float>()[row] = lse;
  raise(result_.magnitudes.score, std::fabs(lse));
  raise(result_.magnitudes.lse, std::fabs(lse));
  result_.magnitudes.capped = cap_ != 0.0F;
  const auto at = static_cast<std::int64_t>(((b * p_.query_seq + i) * p_.query_heads + h) * v_.dim);
  for (std::int64_t d = 0; d < v_.dim; ++d) {
    float acc = 0.0F;
    double magnitude = 0.0;
    for (std::size_t n = 0; !nothing && n < keys_.size(); ++n) {
      const float v = v_.at(b, keys_[n], h / group())[d];
      acc += round_to(p_.dtype, weights_[n] / sum) * v;
      magnitude += static_cast<double>(weights_[n] / sum) * std::fabs(static_cast<double>(v));
    }
    store(p_.dtype, result_.out.data(), at + d, acc);
    raise(result_.magnitudes.out, magnitude);
  }
}

void Naive::backward_pair(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j, float lse,
                          Dot delta) {
  const std::int64_t g = h / group();
  float slope;
  const float s = score(b, h, i, j, slope);
  const float weight = std::exp(s - lse);
  const Dot dp = dot(do_.at(b, i, h), v_.at(b, j, g), v_.dim);
  const float ds = weight * (dp.value - delta.value) * slope;
  const double ds_abs = static_cast<double>(weight * slope) * (dp.magnitude + delta.magnitude);
  const float p_rounded = round_to(p_.dtype, weight);
  const float ds_rounded = round_to(p_.dtype, ds);
  const float* q = q_.at(b, i, h);
  const float* k = k_.at(b, j, g);
  const float* o = do_.at(b, i, h);
  const std::size_t dv = v_.index(b, j, g);
  const std::size_t dk = k_.index(b, j, g);
  for (std::size_t d = 0; d < static_cast<std::size_t>(v_.dim); ++d) {
    dv_[dv + d] += p_rounded * o[d];
    dv_sq_[dv + d] += square(static_cast<double>(weight * o[d]));
  }
  for (std::size_t d = 0; d < static_cast<std::size_t>(q_.dim); ++d) {
    dq_[d] += ds_rounded * k[d];
    dk_[dk + d] += ds_rounded * q[d];
    dq_abs_[d] += ds_abs * std::fabs(static_cast<double>(k[d]));
    dk_sq_[dk + d] += square(ds_abs * static_cast<double>(q[d]));
  }
}

void Naive::backward_row(std::int64_t b, std::int64_t h, std::int64_t i) {
  see_.row(b, h, i, keys_);
  const std::int64_t row = (b * p_.query_heads + h) * p_.query_seq + i;
  const float lse = result_.lse.as<float>()[row];
  const auto at = static_cast<std::int64_t>(((b * p_.query_seq + i) * p_.query_heads + h));
  Dot delta;
  for (std::int64_t d = 0; !keys_.empty() && lse != kInf && d < v_.dim; ++d) {
    const auto out = static_cast<float>(load(p_.dtype, result_.out.data(), at * v_.dim + d));
    const float o = do_.at(b, i, h)[d];
    delta.value += out * o;
    delta.magnitude += std::fabs(static_cast<double>(out) * static_cast<double>(o));
  }
  if (in_.dlse.present()) {
    const double dlse = load(in_.dlse.dtype, in_.dlse.data, offset(in_.dlse, b, h, i));
    delta.value -= static_cast<float>(dlse);
    delta.magnitude += std::fabs(dlse);
  }
  const double sink = sinks_[static_cast<std::size_t>(h)];
  if (std::isfinite(sink)) {
    const float weight = std::exp(static_cast<float>(sink) - lse);
    dsink_[static_cast<std::size_t>(h)] -= weight * delta.value;
    dsink_sq_[static_cast<std::size_t>(h)] += square(static_cast<double>(weight) * delta.magnitude);
  }
  std::fill(dq_.begin(), dq_.end(), 0.0F);
  std::fill(dq_abs_.begin(), dq_abs_.end(), 0.0);
  if (lse != kInf) {
    for (std::int64_t j : keys_) backward_pair(b, h, i, j, lse, delta);
  }
  for (std::int64_t d = 0; d < q_.dim; ++d) {
    const auto n = static_cast<std::size_t>(d);
    store(p_.dtype, result_.dquery.data(), at * q_.dim + d, scale_ * dq_[n]);
    raise(result_.magnitudes.dquery, std::fabs(scale_) * dq_abs_[n]);
  }
}

void Naive::store_gradients() {
  Magnitudes& m = result_.magnitudes;
  for (std::size_t n = 0; n < dk_.size(); ++n) {
    store(p_.dtype, result_.dkey.data(), static_cast<std::int64_t>(n), scale_ * dk_[n]);
    raise(m.dkey, std::fabs(scale_) * std::sqrt(dk_sq_[n]));
  }
  for (std::size_t n = 0; n < dv_.size(); ++n) {
    store(p_.dtype, result_.dvalue.data(), static_cast<std::int64_t>(n), dv_[n]);
    raise(m.dvalue, std::sqrt(dv_sq_[n]));
  }
  if (!in_.sinks.present()) return;
  result_.dsinks = spread_to_sinks(in_.sinks, dsink_);
  const bool shared = in_.sinks.rank == 1 && in_.sinks.dim(0) != p_.query_heads;
  double sum = 0.0;  // a shared sink adds up the heads
  for (double x : dsink_sq_) raise(m.dsinks, std::sqrt(shared ? sum += x : x));
}

NaiveResult Naive::run(bool backward) {
  const std::int64_t b_count = p_.batch, rows = p_.query_seq, heads = p_.query_heads;
  result_.out = HostTensor(p_.dtype, {b_count, rows, heads, v_.dim});
  result_.lse = HostTensor(DType::kFloat32, {b_count, heads, rows});
  result_.dquery = HostTensor(p_.dtype, {b_count, rows, heads, q_.dim});
  result_.dkey = HostTensor(p_.dtype, {b_count, p_.key_seq, p_.kv_heads, k_.dim});
  result_.dvalue = HostTensor(p_.dtype, {b_count, p_.key_seq, p_.kv_heads, v_.dim});
  dq_.resize(static_cast<std::size_t>(q_.dim));
  dq_abs_.resize(dq_.size());
  dk_.resize(k_.data.size());
  dk_sq_.resize(dk_.size());
  dv_.resize(v_.data.size());
  dv_sq_.resize(dv_.size());
  dsink_.resize(static_cast<std::size_t>(heads));
  dsink_sq_.resize(dsink_.size());
  for (std::int64_t b = 0; b < b_count; ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t i = 0; i < rows; ++i) {
        forward_row(b, h, i);
        if (backward) backward_row(b, h, i);
      }
    }
  }
  if (backward) store_gradients();
  return std::move(result_);
}

}  // namespace

NaiveResult naive_attention(const Problem& problem, const Options& options,
                            const RingInputs& inputs, bool backward) {
  return Naive(problem, options, inputs).run(backward);
}

}  // namespace ringattn::support
