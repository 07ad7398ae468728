// SPDX-License-Identifier: Apache-2.0
// How much of its transfers does a ring over MPI hide behind compute? One core and one thread a
// rank, 4 heads of 64, float32, every pair visible:
//
//   mpirun -n 2 --bind-to core build/dev/bin/bench_mpi_overlap forward
//
// Three times, in turns, each from all ranks ready to the last one done: the ring's pass; the same
// without its transfers (it finds what came in an earlier pass); the transfers without the pass.
// extra: ring - compute of one turn. inside: what a rank spent inside the communicator in the
// ring's pass, which machines that are never quiet blur less. hidden: 1 - extra (or inside) /
// transfers.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "ringattn/mpi.h"
#include "support/data.h"
#include "support/rank_job.h"
#include "support/ring_rank.h"
#include "traced.h"

namespace ringattn::bench {
namespace {

using Times = std::vector<double>;

constexpr double kEnoughMs = 4000.0;  // for one row, within these numbers of turns
constexpr std::size_t kFewest = 5;
constexpr std::size_t kMost = 400;

double quantile(Times times, double share) {
  std::sort(times.begin(), times.end());
  return times[static_cast<std::size_t>(share * static_cast<double>(times.size() - 1) + 0.5)];
}

double largest(Communicator& ring, double own) {
  const Times all = support::gather_all(ring, own);
  return *std::max_element(all.begin(), all.end());
}

template <class Work>
double timed(Communicator& ring, const Work& work) {
  support::gather_all(ring, 0);  // all are ready
  const auto begin = std::chrono::steady_clock::now();
  work();
  return largest(ring, milliseconds_since(begin));
}

std::vector<std::byte> bytes_of(const ConstTensorView& v) {
  std::size_t bytes = size_of(v.dtype);
  for (int d = 0; d < v.rank; ++d) bytes *= static_cast<std::size_t>(v.shape[d]);
  const auto* data = static_cast<const std::byte*>(v.data);
  return {data, data + bytes};
}

/// One pass of one problem on the ranks of `ring`, and its halves.
class Pass {
 public:
  Pass(Communicator& ring, long rows, bool backward)
      : ring_(ring), traced_(ring), backward_(backward) {
    support::Case c =
        support::parse_case("sq" + std::to_string(rows * ring.size()) + "_h4_d64_bwd");
    c.ring = ring.size();
    const support::CaseData data = support::make_data(c);
    const Problem problem = support::make_problem(c);
    Options options = support::make_options(c, data);
    options.executor = make_thread_pool(1);
    support::RingSettings settings;
    settings.backward = backward;
    rank_.rank = ring.rank();
    rank_.attention = std::make_unique<RingAttention>(traced_, problem, options);
    rank_.cut_inputs(data.inputs(), options.layout, ring.size(), support::Guard::kNone);
    rank_.make_outputs(settings, problem);
    if (backward) rank_.run_pass(false, support::Guard::kNone);
    run(Traced::Mode::kRecord);
    const auto expected = result();
    run(Traced::Mode::kRecall);
    if (result() != expected) throw Error(ErrorCode::kInternal, "the recalled pass differs");
  }

  double ring() {
    return timed(ring_, [&] { run(Traced::Mode::kPassOn); });
  }
  double compute() {
    return timed(ring_, [&] { run(Traced::Mode::kRecall); });
  }
  double transfers() {
    return timed(ring_, [&] { traced_.transfers(); });
  }
  /// Of the latest ring(): what the communicator took of a rank's time, on the rank where it took
  /// least. The others also waited for that one's compute, which is no cost of transfers.
  double inside() {
    const Times all = support::gather_all(ring_, traced_.verbs_ms() + traced_.progress_ms());
    return *std::min_element(all.begin(), all.end());
  }
  std::int64_t bytes() const { return (backward_ ? rank_.backward : rank_.forward).bytes; }

 private:
  void run(Traced::Mode mode) {
    traced_.begin(mode);
    rank_.run_pass(backward_, support::Guard::kNone);
  }
  std::vector<std::byte> result() const {
    return bytes_of(backward_ ? rank_.dkey.view() : rank_.out.view());
  }

  Communicator& ring_;
  Traced traced_;
  bool backward_;
  support::RingRank rank_;
};

void measure(Communicator& ring, long rows, bool backward) {
  Pass pass(ring, rows, backward);
  Times ring_ms, compute_ms, transfers_ms, extra_ms, inside_ms;
  double sum = 0.0;
  pass.transfers();
  while (ring_ms.size() < kFewest || (sum < kEnoughMs && ring_ms.size() < kMost)) {
    ring_ms.push_back(pass.ring());
    inside_ms.push_back(pass.inside());
    compute_ms.push_back(pass.compute());
    transfers_ms.push_back(pass.transfers());
    extra_ms.push_back(ring_ms.back() - compute_ms.back());
    sum += ring_ms.back() + compute_ms.back() + transfers_ms.back();
  }
  if (ring.rank() != 0) return;
  const double transfers = quantile(transfers_ms, 0.5);
  const double extra = quantile(extra_ms, 0.5);
  const double inside = quantile(inside_ms, 0.5);
  std::printf("%7ld %7.2f %9.3f %9.3f %9.3f %8.3f (%.3f to %.3f) %4.0f %% %8.3f %4.0f %% %5zu\n",
              rows, static_cast<double>(pass.bytes()) / 1e6, quantile(ring_ms, 0.5),
              quantile(compute_ms, 0.5), transfers, extra, quantile(extra_ms, 0.25),
              quantile(extra_ms, 0.75), 100.0 * (1.0 - extra / transfers), inside,
              100.0 * (1.0 - inside / transfers), ring_ms.size());
  std::fflush(stdout);
}

int run(const std::vector<std::string>& words) {
  MpiProcess process;
  Communicator& ring = process.ring();
  if (words.empty() || (words[0] != "forward" && words[0] != "backward") || ring.size() < 2) {
    std::fprintf(stderr, "usage: mpirun -n 2 bench_mpi_overlap forward|backward [S_LOCAL...]\n");
    return 2;
  }
  std::vector<long> all;
  for (std::size_t i = 1; i < words.size(); ++i) all.push_back(std::stol(words[i]));
  if (all.empty()) all = {256, 512, 1024, 2048, 4096, 8192};
  if (ring.rank() == 0) {
    std::printf("%s, %d ranks, %s\n", mpi_library().c_str(), ring.size(), words[0].c_str());
    std::printf(
        "S_local MB sent   ring ms   compute transfers    extra (quartiles), hidden"
        "   inside, hidden turns\n");
  }
  for (const long rows : all) measure(ring, rows, words[0] == "backward");
  process.end();
  return 0;
}

}  // namespace
}  // namespace ringattn::bench

int main(int argc, char** argv) {
  try {
    return ringattn::bench::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_mpi_overlap: %s\n", error.what());
    std::fflush(nullptr);
    ::_exit(4);  // MPI_Finalize would wait for the others
  }
}
