// SPDX-License-Identifier: Apache-2.0
// The main job on real input: twelve documents packed into one sequence of 2,048 tokens, taken
// from inside a language model (examples/data/README.md), through a ring of four, forward and
// backward, compared with float64 answers. It judges by fixed limits; the tests judge finer.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "io/tensor_file.h"
#include "ringattn/attention.h"

namespace {

using namespace ringattn;  // NOLINT(google-build-using-namespace): an example reads better so

constexpr int kRing = 4;

/// Everything in global order, and what it took.
struct Outcome {
  TensorMap tensors;
  double forward_ms = 0, backward_ms = 0;  // of the slowest rank
  PassCounts forward, backward;            // hops of the busiest rank, the rest summed
};

HostTensor cut(const HostTensor& global, int seq_dim, Layout layout, int rank) {
  std::vector<std::int64_t> shape = global.shape();
  const auto d = static_cast<std::size_t>(seq_dim);
  shape[d] = positions(layout, shape[d], kRing, rank).size();
  HostTensor local(global.dtype(), shape);
  shard(global.view(), seq_dim, layout, kRing, rank, local.view());
  return local;
}

void add(PassCounts& sum, const PassCounts& rank) {
  sum.hops = std::max(sum.hops, rank.hops);
  sum.bytes += rank.bytes;
  sum.tiles.visited += rank.tiles.visited;
  sum.tiles.full += rank.tiles.full;
  sum.tiles.skipped += rank.tiles.skipped;
}

double milliseconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

/// One rank's whole life: cut its shards, run, put its rows of the results where they belong.
void run_rank(Communicator& ring, const Problem& problem, const Options& options,
              const TensorMap& in, const HostTensor* sinks, Outcome& outcome, std::mutex& mutex) {
  const Layout layout = options.layout;
  std::map<std::string, HostTensor> t;
  for (const char* name : {"query", "key", "value", "dout", "q_segment_ids", "kv_segment_ids"}) {
    t[name] = cut(in.at(name), 1, layout, ring.rank());
  }
  for (const auto& [name, global] : outcome.tensors) {
    t[name] = name == "dsoftmax_aux" ? HostTensor(global.dtype(), global.shape())
                                     : cut(global, name == "lse" ? 2 : 1, layout, ring.rank());
  }
  const ConstTensorView aux = sinks == nullptr ? ConstTensorView() : sinks->view();
  RingAttention attention(ring, problem, options);
  auto begin = std::chrono::steady_clock::now();
  const PassCounts forward = attention.forward({.query = t["query"].view(),
                                                .key = t["key"].view(),
                                                .value = t["value"].view(),
                                                .q_segment_ids = t["q_segment_ids"].view(),
                                                .kv_segment_ids = t["kv_segment_ids"].view(),
                                                .sinks = aux,
                                                .out = t["out"].view(),
                                                .lse = t["lse"].view()});
  const double forward_ms = milliseconds_since(begin);
  begin = std::chrono::steady_clock::now();
  const PassCounts backward =
      attention.backward({.query = t["query"].view(),
                          .key = t["key"].view(),
                          .value = t["value"].view(),
                          .q_segment_ids = t["q_segment_ids"].view(),
                          .kv_segment_ids = t["kv_segment_ids"].view(),
                          .sinks = aux,
                          .out = t["out"].view(),
                          .lse = t["lse"].view(),
                          .dout = t["dout"].view(),
                          .dquery = t["dquery"].view(),
                          .dkey = t["dkey"].view(),
                          .dvalue = t["dvalue"].view(),
                          .dsinks = sinks == nullptr ? TensorView() : t["dsoftmax_aux"].view()});
  const double backward_ms = milliseconds_since(begin);

  const std::lock_guard lock(mutex);
  outcome.forward_ms = std::max(outcome.forward_ms, forward_ms);
  outcome.backward_ms = std::max(outcome.backward_ms, backward_ms);
  add(outcome.forward, forward);
  add(outcome.backward, backward);
  for (auto& [name, global] : outcome.tensors) {
    if (name == "dsoftmax_aux") {
      global = t[name];  // summed over the ring, and equal on every rank
    } else {
      unshard(t[name].view(), name == "lse" ? 2 : 1, layout, kRing, ring.rank(), global.view());
    }
  }
}

Outcome run_ring(const TensorMap& in, const HostTensor* sinks, const Options& options) {
  const std::vector<std::int64_t>& shape = in.at("query").shape();
  const Problem problem{.batch = shape[0],
                        .query_seq = shape[1],
                        .key_seq = in.at("key").shape()[1],
                        .query_heads = shape[2],
                        .kv_heads = in.at("key").shape()[2],
                        .head_dim = shape[3],
                        .dtype = in.at("query").dtype()};
  Outcome outcome;
  for (const char* name : {"out", "dquery", "dkey", "dvalue"}) {
    outcome.tensors[name] = HostTensor(DType::kFloat32, shape);
  }
  outcome.tensors["lse"] = HostTensor(DType::kFloat32, {shape[0], shape[2], shape[1]});
  if (sinks != nullptr) outcome.tensors["dsoftmax_aux"] = HostTensor(DType::kFloat32, {shape[2]});

  const auto ring = make_local_ring(kRing);
  std::vector<std::exception_ptr> errors(kRing);
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int r = 0; r < kRing; ++r) {
    threads.emplace_back([&, r] {
      const auto rank = static_cast<std::size_t>(r);
      try {
        run_rank(*ring[rank], problem, options, in, sinks, outcome, mutex);
      } catch (const std::exception& error) {
        errors[rank] = std::current_exception();
        ring[rank]->abort(error.what());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return outcome;
}

/// Largest and root mean square error of one tensor.
struct Deviation {
  double largest = 0, squares = 0, magnitude = 0;
  std::int64_t count = 0;

  void add(float got, float want) {
    // Two equal infinities (rows that see nothing) are right; any other NaN or inf is not.
    const double error = got == want ? 0.0 : std::abs(static_cast<double>(got) - want);
    largest = std::isnan(error) ? INFINITY : std::max(largest, error);
    squares += error * error;
    if (std::isfinite(want)) magnitude = std::max(magnitude, std::abs(static_cast<double>(want)));
    ++count;
  }
};

/// The file holds tensors with a head_dim for two heads only, and all others whole.
Deviation compare(const std::string& name, const HostTensor& got, const TensorMap& expected,
                  const std::string& prefix) {
  Deviation deviation;
  const HostTensor& want = expected.at(prefix + name);
  if (got.shape().size() < 4) {
    for (std::int64_t i = 0; i < got.elements(); ++i) {
      deviation.add(got.as<float>()[i], want.as<float>()[i]);
    }
    return deviation;
  }
  const HostTensor& heads = expected.at("heads");
  const std::int64_t rows = got.shape()[0] * got.shape()[1], all = got.shape()[2],
                     dim = got.shape()[3];
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t h = 0; h < heads.elements(); ++h) {
      const float* g = got.as<float>() + (i * all + heads.as<std::int32_t>()[h]) * dim;
      const float* w = want.as<float>() + (i * heads.elements() + h) * dim;
      for (std::int64_t d = 0; d < dim; ++d) deviation.add(g[d], w[d]);
    }
  }
  return deviation;
}

void print_pass(const char* pass, double ms, const PassCounts& counts) {
  std::printf("  %-9s %8.1f ms %6lld hops %12lld bytes sent %8lld tiles visited %8lld skipped\n",
              pass, ms, static_cast<long long>(counts.hops), static_cast<long long>(counts.bytes),
              static_cast<long long>(counts.tiles.visited),
              static_cast<long long>(counts.tiles.skipped));
}

/// Largest errors of a dense attention in bf16 with float32 products (examples/data/README.md).
/// The contract allows twice that, and a few units in the last place of the largest value.
using Naive = std::vector<std::pair<std::string, double>>;

bool report(const char* title, const Outcome& outcome, const TensorMap& expected,
            const std::string& prefix, const Naive& naive) {
  std::printf("\n%s\n", title);
  print_pass("forward", outcome.forward_ms, outcome.forward);
  print_pass("backward", outcome.backward_ms, outcome.backward);
  std::printf("  %-14s %14s %14s %14s %10s\n", "tensor", "largest error", "rms error", "allowed",
              "");
  bool fine = true;
  for (const auto& [name, bound] : naive) {
    const Deviation d = compare(name, outcome.tensors.at(name), expected, prefix);
    const double allowed = 2 * bound + 4 * 1.2e-7 * d.magnitude;
    const bool good = d.largest <= allowed;
    fine = fine && good;
    std::printf("  %-14s %14.1e %14.1e %14.1e %10s\n", name.c_str(), d.largest,
                std::sqrt(d.squares / static_cast<double>(std::max<std::int64_t>(d.count, 1))),
                allowed, good ? "fine" : "TOO LARGE");
  }
  return fine;
}

int demo(const std::string& input, const std::string& answers) {
  const TensorMap in = read_tensors(input);
  const TensorMap expected = read_tensors(answers);
  std::printf("A ring of %d ranks in this process; %s; errors are against float64.\n", kRing,
              input.c_str());

  Options documents{.segment_ids = true};
  const bool first = report(
      "1. Each document sees itself. Layout contiguous.", run_ring(in, nullptr, documents),
      expected, "",
      {{"out", 9.3e-3}, {"lse", 1.1e-6}, {"dquery", 1.6e-2}, {"dkey", 2.2e-2}, {"dvalue", 7.1e-2}});

  Options windowed{.mask = Mask::causal() & Mask::window(255, 0),
                   .layout = Layout::kZigzag,
                   .logits_soft_cap = 30.0F,
                   .segment_ids = true};
  const bool second = report(
      "2. The same, causal, window (255, 0), soft cap 30, a sink per head. Layout zigzag.",
      run_ring(in, &expected.at("softmax_aux"), windowed), expected, "causal_w255_cap30_sink.",
      {{"out", 7.6e-3},
       {"lse", 1.2e-6},
       {"dquery", 1.7e-2},
       {"dkey", 2.5e-2},
       {"dvalue", 8.4e-2},
       {"dsoftmax_aux", 3.2e-2}});
  return first && second ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s INPUT.safetensors EXPECTED.safetensors\n", argv[0]);
    return 2;
  }
  try {
    return demo(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "demo: error: %s\n", error.what());
    return 1;
  }
}
