// SPDX-License-Identifier: Apache-2.0
#include "support/rank_job.h"

#include <algorithm>
#include <future>
#include <string>
#include <utility>

namespace ringattn::support {

void while_others_wait(Communicator& ring, std::chrono::milliseconds timeout,
                       const std::function<void()>& work) {
  if (ring.size() == 1) return work();
  guarded(&ring, [&] {
    std::future<void> done;
    if (ring.rank() == 0) done = std::async(std::launch::async, work);
    for (int ready = 0; ready == 0;) {
      if (done.valid()) ready = done.wait_for(timeout / 4) == std::future_status::ready ? 1 : 0;
      if (ready != 0) done.get();
      ready = gather_all(ring, ready)[0];
    }
  });
}

RankJob::RankJob(Communicator& ring, const Problem& problem, const Options& options,
                 const RingSettings& settings)
    : ring_(&ring),
      problem_(problem),
      options_(options),
      settings_(settings),
      rank_(std::make_unique<RingRank>()) {
  rank_->rank = ring.rank();
}

RankJob::RankJob(Communicator& ring, const Problem& problem, const Options& options,
                 const RingInputs& rows, const RingSettings& settings)
    : RankJob(ring, problem, options, settings) {
  options_.segment_ids = rows.q_segment_ids.present() || rows.kv_segment_ids.present();
  options_.explicit_positions = rows.q_positions.present() || rows.kv_positions.present();
  rank_->attention = std::make_unique<RingAttention>(ring, problem_, options_);
  rank_->in = rows;
  rank_->make_outputs(settings_, problem_);
}

RankJob RankJob::of_global(Communicator& ring, const Problem& problem, const Options& options,
                           const RingInputs& global, const RingSettings& settings) {
  RankJob job(ring, problem, options, settings);
  job.options_.segment_ids = global.q_segment_ids.present() || global.kv_segment_ids.present();
  job.options_.explicit_positions = global.q_positions.present() || global.kv_positions.present();
  // Construction first: it checks the problem before any shard is cut by it.
  job.rank_->attention = std::make_unique<RingAttention>(ring, problem, job.options_);
  job.rank_->cut_inputs(global, options.layout, ring.size(), settings.guard);
  job.rank_->make_outputs(settings, problem);
  return job;
}

double RankJob::timed_pass(bool backward) {
  using Clock = std::chrono::steady_clock;
  gather_all(*ring_, 0);  // all are ready
  const Clock::time_point begin = Clock::now();
  rank_->run_pass(backward, settings_.guard);
  gather_all(*ring_, 0);  // all are done
  const double own = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
  const std::vector<double> all = gather_all(*ring_, own);
  if (settings_.progress) settings_.progress(backward, ring_->size());
  return *std::max_element(all.begin(), all.end());
}

double RankJob::forward() { return forward_ms_ = timed_pass(false); }
double RankJob::backward() { return backward_ms_ = timed_pass(true); }

RingResult RankJob::summary() {
  RingResult result;
  result.forward = gather_all(*ring_, rank_->forward);
  if (settings_.backward) result.backward = gather_all(*ring_, rank_->backward);
  result.forward_ms = forward_ms_;
  result.backward_ms = backward_ms_;
  result.backend = rank_->attention->backend();
  result.backend_reason = rank_->attention->backend_reason();
  return result;
}

/// Calls take(rank, bytes) on rank 0 with every rank's tensor, one after the other.
template <class Take>
void RankJob::send_to_first(const HostTensor& own, const Take& take) {
  const auto sizes = gather_all(*ring_, own.size_bytes());
  const int me = ring_->rank();
  guarded(ring_, [&] {
    if (me == 0) take(0, std::span(own.data(), own.size_bytes()));
    for (int r = 1; r < ring_->size(); ++r) {
      std::vector<std::byte> came(me == 0 ? sizes[static_cast<std::size_t>(r)] : 0);
      std::span<const std::byte> out;
      if (me == r) out = {own.data(), own.size_bytes()};
      const auto ticket = ring_->shift(out, came, came.size(), -r, {}, {r, r, r});
      ring_->wait(ticket, {});
      ring_->finish(ticket, {});
      if (me == 0) take(r, std::span<const std::byte>(came));
    }
  });
}

/// All ranks' rows in global order, on rank 0.
HostTensor RankJob::collect(const LocalTensor& rows, int seq_dim, std::int64_t length) {
  const ConstTensorView view = rows.view();
  if (!view.present()) return {};
  HostTensor own(view.dtype, shape_of(view));
  unshard(view, 0, Layout::kContiguous, 1, 0, own.view());  // a plain copy of strided memory
  std::vector<std::int64_t> shape = own.shape();
  const auto d = static_cast<std::size_t>(seq_dim);
  shape[d] = length;
  HostTensor global = ring_->rank() == 0 ? HostTensor(view.dtype, shape) : HostTensor();
  send_to_first(own, [&](int r, std::span<const std::byte> bytes) {
    std::vector<std::int64_t> local = shape;
    local[d] = positions(options_.layout, length, ring_->size(), r).size();
    HostTensor part(view.dtype, local);
    std::copy(bytes.begin(), bytes.end(), part.data());
    unshard(std::as_const(part).view(), seq_dim, options_.layout, ring_->size(), r, global.view());
  });
  return global;
}

void RankJob::require_equal_everywhere(const HostTensor& own) {
  send_to_first(own, [&](int r, std::span<const std::byte> bytes) {
    if (std::equal(bytes.begin(), bytes.end(), own.data(), own.data() + own.size_bytes())) return;
    throw Error(ErrorCode::kInternal,
                "dsoftmax_aux: rank " + std::to_string(r) + " differs from rank 0");
  });
}

RingResult RankJob::result() {
  RingResult result = summary();
  result.out = collect(rank_->out, 1, problem_.query_seq);
  result.lse = collect(rank_->lse, 2, problem_.query_seq);
  result.dquery = collect(rank_->dquery, 1, problem_.query_seq);
  result.dkey = collect(rank_->dkey, 1, problem_.key_seq);
  result.dvalue = collect(rank_->dvalue, 1, problem_.key_seq);
  const ConstTensorView sinks = rank_->dsinks.view();
  if (sinks.present()) {
    result.dsinks = HostTensor(sinks.dtype, shape_of(sinks));
    unshard(sinks, 0, Layout::kContiguous, 1, 0, result.dsinks.view());
    require_equal_everywhere(result.dsinks);
  }
  return result;
}

}  // namespace ringattn::support
