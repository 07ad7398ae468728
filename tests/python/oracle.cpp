// SPDX-License-Identifier: Apache-2.0
// What the tests of the Python package ask of the C++ ones: the table of cases, their data, and the
// verdict on what another front end made of them. A shared object for ctypes; never installed.
#include <cstring>
#include <exception>
#include <string>

#include "support/conformance.h"
#include "support/conformance_table.h"
#include "support/data.h"

using namespace ringattn;
using namespace ringattn::support;

struct Oracle {
  Case c;
  CaseData data;
  Problem problem;
  Options options;
  Expected expected;
  RingResult result;
  std::string text;

  const HostTensor* input(const std::string& name) const {
    if (name == "query") return &data.query;
    if (name == "key") return &data.key;
    if (name == "value") return &data.value;
    if (name == "dout") return &data.dout;
    if (name == "dlse") return &data.dlse;
    if (name == "softmax_aux") return &data.sinks;
    if (name == "q_segment_ids") return &data.q_segment_ids;
    if (name == "kv_segment_ids") return &data.kv_segment_ids;
    if (name == "q_positions") return &data.q_positions;
    if (name == "kv_positions") return &data.kv_positions;
    return name == "mask" ? &data.mask : nullptr;
  }
};

namespace {

std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }

double side(const Case::Side& bound) { return bound ? static_cast<double>(*bound) : -1.0; }

}  // namespace

extern "C" {

/// Row `i` of the table; null behind the last one.
const char* oracle_row(int i) {
  return i < static_cast<int>(std::size(kCases)) ? kCases[i] : nullptr;
}

/// The case with its lengths rounded up to multiples of `unit`: a shard_map cuts evenly.
Oracle* oracle_make(const char* text, std::int64_t unit) {
  try {
    auto* o = new Oracle;
    o->c = parse_case(text);
    o->c.query_seq = round_up(o->c.query_seq, unit);
    o->c.key_seq = round_up(o->c.key_seq, unit);
    o->data = make_data(o->c);
    o->problem = make_problem(o->c);
    o->options = make_options(o->c, o->data);
    o->expected = make_expected(o->problem, o->options, o->data.inputs(), o->c.backward);
    return o;
  } catch (const std::exception&) {
    return nullptr;
  }
}

void oracle_free(Oracle* o) { delete o; }

/// Numbers of the case: causal, window (0 or 1), left, right (-1: none), chunk, cap, scale given,
/// scale, q block, kv block, fused, backward, dlse.
void oracle_options(const Oracle* o, double* out) {
  const Case& c = o->c;
  *out++ = c.causal ? 1 : 0;
  *out++ = c.window ? 1 : 0;
  *out++ = c.window ? side(c.window->first) : 0;
  *out++ = c.window ? side(c.window->second) : 0;
  *out++ = static_cast<double>(c.chunk.value_or(0));
  *out++ = c.soft_cap.value_or(0.0F);
  *out++ = c.scale ? 1 : 0;
  *out++ = c.scale.value_or(0.0F);
  *out++ = static_cast<double>(c.q_block);
  *out++ = static_cast<double>(c.kv_block);
  *out++ = c.fused ? 1 : 0;
  *out++ = c.backward ? 1 : 0;
  *out++ = c.dlse ? 1 : 0;
}

/// An input: its memory, dtype, rank and shape; -1 if the case has none of that name.
int oracle_input(const Oracle* o, const char* name, const void** data, std::int64_t* shape) {
  const HostTensor* t = o->input(name);
  if (t == nullptr || t->shape().empty()) return -1;
  *data = t->data();
  *shape++ = static_cast<std::int64_t>(t->shape().size());
  for (std::int64_t n : t->shape()) *shape++ = n;
  return static_cast<int>(t->dtype());
}

/// Hands in a result, in global order, of the problem's dtype (lse, dsoftmax_aux: float32).
void oracle_result(Oracle* o, const char* name, const void* data) {
  for (const NamedResult& r : kResults) {
    if (std::strcmp(r.name, name) != 0) continue;
    const HostTensor& naive = o->expected.naive.*r.naive;
    HostTensor& mine = o->result.*r.member;
    mine = HostTensor(naive.dtype(), naive.shape());
    std::memcpy(mine.data(), data, mine.size_bytes());
  }
}

/// What is wrong with the results, by the error model of every test; empty: nothing. `gpu`: they
/// were computed on one.
const char* oracle_verdict(Oracle* o, int gpu) {
  o->text.clear();
  Problem problem = o->problem;
  problem.device = gpu != 0 ? Device::kCuda : Device::kCpu;
  for (const NamedResult& r : kResults) {
    if ((o->result.*r.member).shape().empty()) continue;
    const Comparison c = compare(r.name, o->result.*r.member, o->expected.truth.*r.member,
                                 o->expected.naive.*r.naive,
                                 error_model(r.name, problem, o->expected.naive.magnitudes));
    if (!c.ok) o->text += c.message + "\n";
  }
  return o->text.c_str();
}

/// The first tensor whose bits are not those of the C++ ring; empty: none. dsoftmax_aux is summed
/// by another program and left out.
const char* oracle_bits(Oracle* o, int ring, int layout) {
  try {
    Options options = o->options;
    options.layout = static_cast<Layout>(layout);
    RingSettings settings;
    settings.ring = ring;
    settings.backward = o->c.backward;
    RingResult same = run_on_ring(o->problem, options, o->data.inputs(), settings);
    same.dsinks = o->result.dsinks;
    o->text = different_bits(o->result, same);
  } catch (const std::exception& error) {
    o->text = error.what();
  }
  return o->text.c_str();
}
}
