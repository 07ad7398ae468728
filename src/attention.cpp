// SPDX-License-Identifier: Apache-2.0
// Binds views and buffers to the ring loop and a backend. No mask, no tile, no arithmetic here.
#include "ringattn/attention.h"

#include <cstdint>
#include <optional>
#include <utility>

#include "arguments.h"
#include "backend.h"
#include "bind.h"
#include "block.h"
#include "comm/alone.h"
#include "counts.h"
#include "handshake.h"
#include "memory.h"
#include "plan.h"
#include "progress.h"
#include "ring.h"
#include "summary.h"
#include "workspace.h"

namespace ringattn {
namespace {

/// The side that is given, or the other one for both.
const ConstTensorView& either(const ConstTensorView& a, const ConstTensorView& b) {
  return a.present() ? a : b;
}

/// A plan's bitmap where the kernels can read it.
class ResidentBitmap {
 public:
  ResidentBitmap(const Memory& memory, const BlockBitmap* bitmap) {
    if (bitmap == nullptr) return;
    view_ = bitmap->view();
    if (memory.on_host()) return;
    view_.plane_of_head = upload(memory, bitmap->plane_of_head(), arrays_[0]);
    view_.blocks = upload(memory, bitmap->blocks(), arrays_[1]);
    view_.mixed = upload(memory, bitmap->mixed(), arrays_[2]);
  }
  const BitmapView& view() const { return view_; }

 private:
  template <class T>
  static const T* upload(const Memory& memory, std::span<const T> from, Allocation& to) {
    to = allocate(memory, from.size_bytes());
    memory.upload(to.get(), std::as_bytes(from));
    return reinterpret_cast<const T*>(to.get());
  }

  BitmapView view_;
  Allocation arrays_[3];
};

}  // namespace

struct RingAttention::Impl {
  Impl(Communicator* ring_in, const Problem& problem, const Options& options)
      : ring(ring_in == nullptr ? alone : *ring_in),
        plan(make_plan(ring, problem, options)),
        executor(with_progress(ring, options.executor)),
        memory(plan.backend().memory()),
        live(plan.live_matrix()),
        route(make_route(live, plan.rank())),
        bitmap(memory, plan.mask().bitmap.get()),
        backend(plan.backend().name()) {}

  /// A rank whose options are refused, or differ, fails every rank.
  static Plan make_plan(Communicator& ring, const Problem& problem, const Options& options) {
    return guarded(&ring, [&] {
      Plan made(problem, options, ring.rank(), ring.size(), ring.hands_over());
      compare_plans(ring, made);
      return made;
    });
  }

  std::span<std::byte> workspace_for(Pass pass, std::span<std::byte> given);

  template <class Args>
  PairSchedule prepare(Pass pass, const Args& args, const Workspace& w, Stream stream);
  const Route& agree_on_route(const PairSchedule& schedule, const Workspace& w, Stream stream);
  template <class Args>
  KeyBlock block_of(const Args& args, const Step& step, std::span<const std::byte> message,
                    const Workspace& w) const;
  template <class Args>
  StepContext context(const Args& args, const PairSchedule& schedule, const KeyBlock& block,
                      const Step& step, const Workspace& w, Stream stream,
                      std::span<const std::byte> message = {});
  template <class Args>
  void share_block(Pass pass, const Args& args, PairSchedule& schedule, const Workspace& w,
                   Stream stream);
  PassCounts forward(const ForwardArgs& args, std::span<std::byte> given, Stream stream);
  PassCounts backward(const BackwardArgs& args, std::span<std::byte> given, Stream stream);
  void share_sink_gradients(const BackwardArgs& args, const Workspace& w, Stream stream);
  PassCounts total(Pass pass, PassCounts counts, const Traffic& traffic);

  Alone alone;
  Communicator& ring;
  Plan plan;
  std::shared_ptr<Executor> executor;
  const Memory& memory;
  LiveMatrix live;  // by mask and layout
  Route route;      // by live; or by the data of the current call
  ResidentBitmap bitmap;
  std::string backend;
  std::optional<PassCounts> planned[2];  // per pass, if the backend does not count
  Allocation owned;
  std::size_t owned_bytes = 0;
};

std::span<std::byte> RingAttention::Impl::workspace_for(Pass pass, std::span<std::byte> given) {
  const std::size_t bytes = plan.workspace_bytes(pass);
  if (given.empty()) {
    if (owned_bytes < bytes || owned == nullptr) {
      owned.reset();
      owned = allocate(memory, bytes);
      owned_bytes = bytes;
    }
    return {owned.get(), bytes};
  }
  const bool aligned = reinterpret_cast<std::uintptr_t>(given.data()) % Carver::kAlignment == 0;
  if (given.size() < bytes || !aligned) {
    throw Error(ErrorCode::kInvalidArgument,
                "workspace: expected " + std::to_string(bytes) + " bytes aligned to " +
                    std::to_string(Carver::kAlignment) + ", got " + std::to_string(given.size()) +
                    (aligned ? "" : " not so aligned"));
  }
  return given;
}

/// Copies ids, positions and what will travel into the workspace; the schedule's query side.
template <class Args>
PairSchedule RingAttention::Impl::prepare(Pass pass, const Args& args, const Workspace& w,
                                          Stream stream) {
  PairSchedule schedule = plan.pair_schedule(pass, plan.rank(), plan.rank());
  schedule.bitmap = bitmap.view();
  pack_own_block(plan, args.key, args.value, either(args.kv_segment_ids, args.q_segment_ids),
                 args.kv_positions, w, *executor, stream);
  bind_queries(plan, either(args.q_segment_ids, args.kv_segment_ids), args.q_positions, w, stream,
               schedule);
  if (args.sinks.present()) {
    memory.combine_sinks(args.sinks, plan.problem().query_heads, w.head_sinks, stream);
  }
  return schedule;
}

/// With segment ids or positions that the host may read, the ranks tell each other their ranges
/// first.
const Route& RingAttention::Impl::agree_on_route(const PairSchedule& schedule, const Workspace& w,
                                                 Stream stream) {
  const bool data = plan.options().segment_ids || plan.options().explicit_positions;
  if (plan.world() == 1 || !data || !memory.on_host()) return route;
  const Problem& p = plan.problem();
  const KeyBlock own = unpack(plan, plan.rank(), w.own_block);
  const std::size_t bytes = record_bytes(plan);
  summarise(p.batch, plan.query_rows(plan.rank()).size(), plan.key_rows(plan.rank()).size(),
            schedule.query_segments.ids, own.ids, w.query_positions, own.positions,
            w.table.data() + static_cast<std::size_t>(plan.rank()) * bytes);
  gather(ring, memory, w.table, bytes, stream);
  LiveMatrix now = live;
  apply_summaries(plan, w.table.data(), bytes, now);
  route = make_route(now, plan.rank());
  return route;
}

/// What a step works on: this rank's own keys where they lie, or those of a message.
template <class Args>
KeyBlock RingAttention::Impl::block_of(const Args& args, const Step& step,
                                       std::span<const std::byte> message,
                                       const Workspace& w) const {
  return step.offset == 0 ? own_block(plan, args.key, args.value,
                                      either(args.kv_segment_ids, args.q_segment_ids), w)
                          : unpack(plan, step.owner, message);
}

template <class Args>
StepContext RingAttention::Impl::context(const Args& args, const PairSchedule& schedule,
                                         const KeyBlock& block, const Step& step,
                                         const Workspace& w, Stream stream,
                                         std::span<const std::byte> message) {
  const std::byte* shared = nullptr;
  if (!w.shared_block.empty()) shared = shared_block(step.offset == 0 ? w.own_block : message);
  return {plan,        schedule,    args.query,
          block.key,   block.value, args.sinks.present() ? w.head_sinks : nullptr,
          step.first,  step.last,   w.backend,
          *executor,   stream,      w.state,
          !step.first, shared};
}

/// Before any peer receives this rank's block.
template <class Args>
void RingAttention::Impl::share_block(Pass pass, const Args& args, PairSchedule& schedule,
                                      const Workspace& w, Stream stream) {
  if (w.shared_block.empty()) return;
  const KeyBlock own =
      own_block(plan, args.key, args.value, either(args.kv_segment_ids, args.q_segment_ids), w);
  bind_keys(plan, plan.rank(), own, w, stream, schedule);
  plan.backend().share_block(context(args, schedule, own, {}, w, stream), pass, w.shared_block);
}

PassCounts RingAttention::Impl::total(Pass pass, PassCounts counts, const Traffic& traffic) {
  if (!memory.on_host()) {
    auto& known = planned[pass == Pass::kForward ? 0 : 1];
    if (!known) known = plan.counts(pass, plan.rank());
    counts = *known;
  }
  counts.hops = traffic.hops;
  counts.bytes = traffic.bytes;
  counts.tiles.skipped = plan.all_tiles(pass, plan.rank()) - counts.tiles.visited;
  return counts;
}

PassCounts RingAttention::Impl::forward(const ForwardArgs& args, std::span<std::byte> given,
                                        Stream stream) {
  check(plan, args);
  Carver carver(workspace_for(Pass::kForward, given));
  const Workspace w = carve_workspace(plan, Pass::kForward, carver);
  PairSchedule schedule = prepare(Pass::kForward, args, w, stream);
  const Route& turn = agree_on_route(schedule, w, stream);
  TravellingBlocks blocks(ring, plan, w, stream);
  PassCounts counts;
  try {
    share_block(Pass::kForward, args, schedule, w, stream);
    const Traffic traffic = run_ring(
        turn, blocks, nullptr,
        [&](const Step& step, std::span<const std::byte> message, std::span<std::byte>) {
          const KeyBlock block = block_of(args, step, message, w);
          bind_keys(plan, step.owner, block, w, stream, schedule);
          counts +=
              plan.backend().forward({context(args, schedule, block, step, w, stream, message),
                                      args.out, args.lse, args.lse.present()});
        });
    return total(Pass::kForward, counts, traffic);
  } catch (const std::exception& error) {
    ring.abort(error.what());
    blocks.abandon();
    throw;
  }
}

PassCounts RingAttention::Impl::backward(const BackwardArgs& args, std::span<std::byte> given,
                                         Stream stream) {
  check(plan, args);
  Carver carver(workspace_for(Pass::kBackward, given));
  const Workspace w = carve_workspace(plan, Pass::kBackward, carver);
  PairSchedule schedule = prepare(Pass::kBackward, args, w, stream);
  const Route& turn = agree_on_route(schedule, w, stream);
  TravellingBlocks blocks(ring, plan, w, stream);
  TravellingSums sums(ring, plan, plan.backend(), turn, w, *executor, stream);
  PassCounts counts;
  Traffic traffic;
  const bool rounded = plan.world() == 1 && plan.backend().rounds_gradients();
  try {
    share_block(Pass::kBackward, args, schedule, w, stream);
    traffic = run_ring(
        turn, blocks, &sums,
        [&](const Step& step, std::span<const std::byte> message, std::span<std::byte> part) {
          const KeyBlock block = block_of(args, step, message, w);
          bind_keys(plan, step.owner, block, w, stream, schedule);
          counts += plan.backend().backward(
              {context(args, schedule, block, step, w, stream, message), args.out, args.lse,
               args.dout, args.dlse, args.dquery, args.sinks.present() ? w.head_dsinks : nullptr,
               part.data(), part.data() + plan.value_sums_offset(step.owner),
               rounded ? args.dkey : TensorView{}, rounded ? args.dvalue : TensorView{}});
        });
  } catch (const std::exception& error) {
    ring.abort(error.what());
    sums.abandon();
    blocks.abandon();
    throw;
  }
  if (!rounded) {
    const std::byte* own = w.own_sums.data();
    plan.backend().store(own, args.dkey, *executor, stream);
    plan.backend().store(own + plan.value_sums_offset(plan.rank()), args.dvalue, *executor, stream);
  }
  if (args.sinks.present()) share_sink_gradients(args, w, stream);
  return total(Pass::kBackward, counts, traffic);
}

/// Adds every rank's part in the order of ranks: the same bits everywhere.
void RingAttention::Impl::share_sink_gradients(const BackwardArgs& args, const Workspace& w,
                                               Stream stream) {
  const std::size_t stride = record_bytes(plan);
  const auto heads = static_cast<std::size_t>(plan.problem().query_heads);
  const std::span<std::byte> sum(reinterpret_cast<std::byte*>(w.head_dsinks),
                                 heads * sizeof(double));
  if (plan.world() > 1) {
    const auto record = [&](int rank) {
      return w.table.data() + static_cast<std::size_t>(rank) * stride;
    };
    memory.zero({record(plan.rank()), stride}, stream);  // records are longer than the sums
    memory.copy(record(plan.rank()), sum, stream);
    gather(ring, memory, w.table, stride, stream);
    memory.zero(sum, stream);
    for (int r = 0; r < plan.world(); ++r) {
      memory.add(w.head_dsinks, reinterpret_cast<const double*>(record(r)),
                 plan.problem().query_heads, stream);
    }
  }
  memory.spread_sink_gradients(args.sinks, w.head_dsinks, plan.problem().query_heads, args.dsinks,
                               stream);
}

RingAttention::RingAttention(Communicator& ring, const Problem& problem, const Options& options)
    : impl_(std::make_unique<Impl>(&ring, problem, options)) {}
RingAttention::RingAttention(const Problem& problem, const Options& options)
    : impl_(std::make_unique<Impl>(nullptr, problem, options)) {}
RingAttention::~RingAttention() = default;
RingAttention::RingAttention(RingAttention&&) noexcept = default;
RingAttention& RingAttention::operator=(RingAttention&&) noexcept = default;

std::size_t RingAttention::forward_workspace_bytes() const {
  return impl_->plan.workspace_bytes(Pass::kForward);
}
std::size_t RingAttention::backward_workspace_bytes() const {
  return impl_->plan.workspace_bytes(Pass::kBackward);
}
const std::string& RingAttention::backend() const { return impl_->backend; }
const std::string& RingAttention::backend_reason() const { return impl_->plan.backend_reason(); }

PassCounts RingAttention::forward(const ForwardArgs& args, std::span<std::byte> workspace,
                                  Stream stream) {
  return guarded(&impl_->ring, [&] { return impl_->forward(args, workspace, stream); });
}

PassCounts RingAttention::backward(const BackwardArgs& args, std::span<std::byte> workspace,
                                   Stream stream) {
  return guarded(&impl_->ring, [&] { return impl_->backward(args, workspace, stream); });
}

}  // namespace ringattn
