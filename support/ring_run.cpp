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

std::vector<std::unique_ptr<Communicator>> make_device_ring(int ranks,
                                                            std::chrono::milliseconds timeout) {
#if defined(RINGATTN_HAVE_CUDA)
  return make_cuda_local_ring(ranks, timeout);
#else
  (void)timeout;
  throw Error(ErrorCode::kUnsupported, "a ring of " + std::to_string(ranks) +
                                           " ranks on a GPU: this build has no CUDA backend");
#endif
}

}  // namespace

RingJob::RingJob(const Problem& problem, const Options& options, const RingInputs& inputs,
                 const RingSettings& settings)
    : settings_(settings),
      problem_(problem),
      options_(options),
      memory_(choose_backend(problem, options).backend->memory()),
      ring_(memory_.on_host() ? make_local_ring(settings.ring, settings.timeout)
                              : make_device_ring(settings.ring, settings.timeout)) {
  options_.segment_ids = inputs.q_segment_ids.present() || inputs.kv_segment_ids.present();
  options_.explicit_positions = inputs.q_positions.present() || inputs.kv_positions.present();
  for (int r = 0; r < settings_.ring; ++r) {
    ranks_.push_back(std::make_unique<Rank>());
    ranks_.back()->rank = r;
  }
  // Construction first: it checks the problem before any shard is cut by it.
  on_all_ranks([&](Rank& rank) {
    rank.attention = std::make_unique<RingAttention>(*ring_[static_cast<std::size_t>(rank.rank)],
                                                     problem_, options_);
    rank.cut_inputs(inputs, options_.layout, settings_.ring, settings_.guarded);
    rank.make_outputs(settings_, problem_);
    if (memory_.on_host()) return;
    rank.stream = memory_.make_stream();
    rank.for_tensors(false, [&](LocalTensor& t) { t.reside(memory_); });
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

void RingJob::run_pass(Rank& rank, bool backward, int& done) {
  RingAttention& attention = *rank.attention;
  const bool guarded = settings_.guarded && memory_.on_host();
  GuardedWorkspace workspace(!guarded   ? 0
                             : backward ? attention.backward_workspace_bytes()
                                        : attention.forward_workspace_bytes());
  const std::span<std::byte> given = guarded ? workspace.span() : std::span<std::byte>{};
  if (backward) {
    rank.backward = attention.backward(rank.backward_args(), given, rank.stream);
  } else {
    rank.forward = attention.forward(rank.forward_args(), given, rank.stream);
  }
  memory_.synchronize(rank.stream);
  if (!memory_.on_host()) rank.for_tensors(true, [](LocalTensor& t) { t.fetch(); });
  if (guarded) require_intact(workspace.intact(), rank.rank, "the workspace");
  if (settings_.guarded) rank.require_intact_outputs();
  if (settings_.progress) {
    static std::mutex one_at_a_time;
    const std::lock_guard lock(one_at_a_time);
    settings_.progress(backward, ++done);
  }
}

double RingJob::forward() {
  int done = 0;
  forward_ms_ = on_all_ranks([&](Rank& rank) { run_pass(rank, false, done); });
  return forward_ms_;
}

double RingJob::backward() {
  int done = 0;
  backward_ms_ = on_all_ranks([&](Rank& rank) { run_pass(rank, true, done); });
  return backward_ms_;
}

RingResult RingJob::result() const {
  RingResult result;
  const auto gather = [&](LocalTensor Rank::*member, int seq_dim, std::int64_t length) {
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
  result.out = gather(&Rank::out, 1, problem_.query_seq);
  result.lse = gather(&Rank::lse, 2, problem_.query_seq);
  result.dquery = gather(&Rank::dquery, 1, problem_.query_seq);
  result.dkey = gather(&Rank::dkey, 1, problem_.key_seq);
  result.dvalue = gather(&Rank::dvalue, 1, problem_.key_seq);
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

RingResult run_on_ring(const Problem& problem, const Options& options, const RingInputs& inputs,
                       const RingSettings& settings) {
  RingJob job(problem, options, inputs, settings);
  job.forward();
  if (settings.backward) job.backward();
  return job.result();
}

}  // namespace ringattn::support
