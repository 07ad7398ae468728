// SPDX-License-Identifier: Apache-2.0
#include "support/ring_run.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <latch>
#include <mutex>
#include <thread>

#include "backend.h"
#include "ringattn/cuda.h"
#include "support/ring_rank.h"

namespace ringattn::support {
namespace {

using Clock = std::chrono::steady_clock;
/// What the threads of one pass share: whose error counts, and when the work began and ended.
struct Outcome {
  std::mutex mutex;
  std::exception_ptr own_failure;  // the first that is no complaint about a peer
  std::exception_ptr complaint;    // the first of those
  Clock::time_point begin = Clock::time_point::max();
  Clock::time_point end = Clock::time_point::min();

  void failed(bool about_peer) {
    const std::lock_guard lock(mutex);
    std::exception_ptr& slot = about_peer ? complaint : own_failure;
    if (!slot) slot = std::current_exception();
  }
  void rethrow() const {
    if (own_failure) std::rethrow_exception(own_failure);
    if (complaint) std::rethrow_exception(complaint);
  }
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(end - begin).count();
  }
};

/// Runs one rank's work, notes its time, and makes its peers fail if it fails.
template <class Work>
void timed(Communicator& ring, Outcome& outcome, const Work& work) {
  const Clock::time_point begin = Clock::now();
  try {
    work();
  } catch (const Error& error) {
    outcome.failed(error.code() == ErrorCode::kCommunication);
    ring.abort(error.what());
  } catch (const std::exception& error) {
    outcome.failed(false);
    ring.abort(error.what());
  }
  const Clock::time_point end = Clock::now();
  const std::lock_guard lock(outcome.mutex);
  outcome.begin = std::min(outcome.begin, begin);
  outcome.end = std::max(outcome.end, end);
}

std::vector<std::unique_ptr<Communicator>> make_ring(const Memory& memory,
                                                     const RingSettings& settings) {
  if (memory.on_host()) return make_local_ring(settings.ring, settings.timeout);
#if defined(RINGATTN_HAVE_CUDA)
  return make_cuda_local_ring(settings.ring, settings.timeout);
#else
  throw Error(ErrorCode::kUnsupported, "a ring on a GPU: this build has no CUDA backend");
#endif
}

}  // namespace

RingJob::RingJob(const Problem& problem, const Options& options, const RingInputs& inputs,
                 const RingSettings& settings)
    : settings_(settings),
      problem_(problem),
      options_(options),
      memory_(choose_backend(problem, options).backend->memory()),
      ring_(make_ring(memory_, settings)) {
  options_.segment_ids = inputs.q_segment_ids.present() || inputs.kv_segment_ids.present();
  options_.explicit_positions = inputs.q_positions.present() || inputs.kv_positions.present();
  for (int r = 0; r < settings_.ring; ++r) {
    ranks_.push_back(std::make_unique<RingRank>());
    ranks_.back()->rank = r;
  }
  // Construction first: it checks the problem before any shard is cut by it.
  on_all_ranks([&](RingRank& rank) {
    rank.attention = std::make_unique<RingAttention>(*ring_[static_cast<std::size_t>(rank.rank)],
                                                     problem_, options_);
    rank.memory = &memory_;
    rank.stream = memory_.make_stream();
    if (settings_.ring == 1 && settings_.guard == Guard::kNone && memory_.on_host()) {
      rank.in = inputs;
    } else {
      rank.cut_inputs(inputs, options_.layout, settings_.ring, settings_.guard);
    }
    rank.make_outputs(settings_, problem_);
  });
}

RingJob::~RingJob() {
  for (const auto& rank : ranks_) {
    if (rank->stream.handle != nullptr) memory_.destroy(rank->stream);
  }
}

template <class Work>
double RingJob::on_all_ranks(const Work& work) {
  Outcome outcome;
  const auto n = static_cast<std::size_t>(settings_.ring);
  if (n == 1) {
    timed(*ring_[0], outcome, [&] { work(*ranks_[0]); });
  } else {
    std::latch ready(static_cast<std::ptrdiff_t>(n));
    std::vector<std::jthread> threads;
    try {
      for (std::size_t r = 0; r < n; ++r) {
        threads.emplace_back([&, r] {
          ready.arrive_and_wait();
          timed(*ring_[r], outcome, [&] { work(*ranks_[r]); });
        });
      }
    } catch (const std::exception& error) {  // no more threads: let those that wait see the end
      outcome.failed(false);
      ring_[0]->abort(error.what());
      ready.count_down(static_cast<std::ptrdiff_t>(n - threads.size()));
    }
  }
  outcome.rethrow();
  return outcome.milliseconds();
}

void RingJob::run_pass(RingRank& rank, bool backward, int& done) {
  rank.run_pass(backward, settings_.guard);
  if (settings_.progress) {
    static std::mutex one_at_a_time;
    const std::lock_guard lock(one_at_a_time);
    settings_.progress(backward, ++done);
  }
}

double RingJob::forward() {
  int done = 0;
  forward_ms_ = on_all_ranks([&](RingRank& rank) { run_pass(rank, false, done); });
  return forward_ms_;
}

double RingJob::backward() {
  int done = 0;
  backward_ms_ = on_all_ranks([&](RingRank& rank) { run_pass(rank, true, done); });
  return backward_ms_;
}

RingResult RingJob::summary() const {
  RingResult result;
  for (const auto& rank : ranks_) {
    result.forward.push_back(rank->forward);
    if (settings_.backward) result.backward.push_back(rank->backward);
  }
  result.forward_ms = forward_ms_;
  result.backward_ms = backward_ms_;
  result.backend = ranks_[0]->attention->backend();
  result.backend_reason = ranks_[0]->attention->backend_reason();
  return result;
}

RingResult RingJob::finish() {
  RingResult result = summary();
  for (const auto& rank : ranks_) {
    rank->attention.reset();
    rank->in = {};
    rank->owned.clear();
  }
  for (const auto& rank : ranks_) rank->fetch_outputs();
  const auto gather = [&](LocalTensor RingRank::*member, int seq_dim, std::int64_t length) {
    const ConstTensorView first = (ranks_[0].get()->*member).view();
    if (!first.present()) return HostTensor();
    std::vector<std::int64_t> shape = shape_of(first);
    shape[static_cast<std::size_t>(seq_dim)] = length;
    HostTensor global(first.dtype, shape);
    for (const auto& rank : ranks_) {
      unshard((rank.get()->*member).view(), seq_dim, options_.layout, settings_.ring, rank->rank,
              global.view());
    }
    return global;
  };
  result.out = gather(&RingRank::out, 1, problem_.query_seq);
  result.lse = gather(&RingRank::lse, 2, problem_.query_seq);
  result.dquery = gather(&RingRank::dquery, 1, problem_.query_seq);
  result.dkey = gather(&RingRank::dkey, 1, problem_.key_seq);
  result.dvalue = gather(&RingRank::dvalue, 1, problem_.key_seq);
  for (const auto& rank : ranks_) {
    const ConstTensorView local = rank->dsinks.view();
    if (!local.present()) break;
    HostTensor whole(local.dtype, shape_of(local));
    unshard(local, 0, Layout::kContiguous, 1, 0, whole.view());
    if (rank->rank > 0 &&
        std::memcmp(whole.data(), result.dsinks.data(), whole.size_bytes()) != 0) {
      throw Error(ErrorCode::kInternal,
                  "dsoftmax_aux: rank " + std::to_string(rank->rank) + " differs from rank 0");
    }
    result.dsinks = std::move(whole);
  }
  return result;
}

RingResult run_on_ring(const Problem& problem, const Options& options, const RingInputs& inputs,
                       const RingSettings& settings) {
  RingJob job(problem, options, inputs, settings);
  job.forward();
  if (settings.backward) job.backward();
  return job.finish();
}

}  // namespace ringattn::support
