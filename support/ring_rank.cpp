// SPDX-License-Identifier: Apache-2.0
#include "support/ring_rank.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

namespace ringattn::support {
namespace {

constexpr std::size_t kWorkspaceCanary = 256;  // bytes; more than the widest store

/// The rows of dimension `seq_dim` that a rank holds; an absent view stays absent.
LocalTensor cut(const ConstTensorView& global, int seq_dim, Layout layout, int world, int rank,
                Guard guard) {
  if (!global.present()) return {};
  std::vector<std::int64_t> shape = shape_of(global);
  shape[static_cast<std::size_t>(seq_dim)] =
      positions(layout, global.dim(seq_dim), world, rank).size();
  LocalTensor local(global.dtype, shape, guard);
  shard(global, seq_dim, layout, world, rank, local.view());
  return local;
}

}  // namespace

std::vector<std::int64_t> shape_of(const ConstTensorView& view) {
  return {view.shape.begin(), view.shape.begin() + std::max(view.rank, 0)};
}

void require_intact(bool intact, int rank, const char* what) {
  if (intact) return;
  throw Error(ErrorCode::kInternal, "rank " + std::to_string(rank) + " wrote outside " + what);
}

GuardedWorkspace::GuardedWorkspace(const Memory& memory, std::size_t bytes)
    : memory_(memory), bytes_(bytes), data_(allocate(memory, bytes + kWorkspaceCanary)) {
  memory.upload(data_.get(), std::vector(bytes + kWorkspaceCanary, std::byte{0xFF}));
}

bool GuardedWorkspace::intact() const {
  std::vector<std::byte> after(kWorkspaceCanary);
  memory_.download(after, data_.get() + bytes_);
  return std::all_of(after.begin(), after.end(), [](std::byte b) { return b == std::byte{0xFF}; });
}

ForwardArgs RingRank::forward_args() {
  ForwardArgs args;
  args.query = in.query;
  args.key = in.key;
  args.value = in.value;
  args.q_segment_ids = in.q_segment_ids;
  args.kv_segment_ids = in.kv_segment_ids;
  args.q_positions = in.q_positions;
  args.kv_positions = in.kv_positions;
  args.sinks = in.sinks;
  args.out = out.argument();
  args.lse = lse.argument();
  return args;
}

BackwardArgs RingRank::backward_args() {
  BackwardArgs args;
  args.query = in.query;
  args.key = in.key;
  args.value = in.value;
  args.q_segment_ids = in.q_segment_ids;
  args.kv_segment_ids = in.kv_segment_ids;
  args.q_positions = in.q_positions;
  args.kv_positions = in.kv_positions;
  args.sinks = in.sinks;
  args.out = out.argument();
  args.lse = lse.argument();
  args.dout = in.dout;
  args.dlse = in.dlse;
  args.dquery = dquery.argument();
  args.dkey = dkey.argument();
  args.dvalue = dvalue.argument();
  args.dsinks = dsinks.argument();
  return args;
}

void RingRank::cut_inputs(const RingInputs& global, Layout layout, int world, Guard guard) {
  const auto keep = [&](LocalTensor tensor) {
    owned.push_back(std::move(tensor));
    owned.back().reside(*memory);
    return ConstTensorView(owned.back().argument());
  };
  const auto rows = [&](const ConstTensorView& whole, int seq_dim) {
    return keep(cut(whole, seq_dim, layout, world, rank, guard));
  };
  in.query = rows(global.query, 1);
  in.key = rows(global.key, 1);
  in.value = rows(global.value, 1);
  in.q_segment_ids = rows(global.q_segment_ids, 1);
  in.kv_segment_ids = rows(global.kv_segment_ids, 1);
  in.q_positions = rows(global.q_positions, 0);
  in.kv_positions = rows(global.kv_positions, 0);
  in.dout = rows(global.dout, 1);
  in.dlse = rows(global.dlse, 2);
  // Every rank has all of them.
  in.sinks = keep(cut(global.sinks, 0, Layout::kContiguous, 1, 0, guard));
}

void RingRank::make_outputs(const RingSettings& settings, const Problem& problem) {
  const auto like = [&](const ConstTensorView& t, DType dtype) {
    return LocalTensor(dtype, shape_of(t), settings.guard);
  };
  const ConstTensorView& q = in.query;
  out = LocalTensor(settings.out_dtype.value_or(problem.dtype),
                    {q.dim(0), q.dim(1), q.dim(2), in.value.dim(3)}, settings.guard);
  if (settings.lse || settings.backward) {
    lse = LocalTensor(settings.lse_dtype, {q.dim(0), q.dim(2), q.dim(1)}, settings.guard);
  }
  if (settings.backward) {
    const DType grad = settings.grad_dtype.value_or(problem.dtype);
    dquery = like(in.query, grad);
    dkey = like(in.key, grad);
    dvalue = like(in.value, grad);
    if (in.sinks.present()) dsinks = like(in.sinks, settings.lse_dtype);
  }
  for (LocalTensor* t : outputs()) t->reside(*memory);
}

std::array<LocalTensor*, 6> RingRank::outputs() {
  return {&out, &lse, &dquery, &dkey, &dvalue, &dsinks};
}

void RingRank::run_pass(bool is_backward, Guard guard) {
  std::optional<GuardedWorkspace> workspace;
  std::span<std::byte> given;
  if (guard != Guard::kNone) {
    workspace.emplace(*memory, is_backward ? attention->backward_workspace_bytes()
                                           : attention->forward_workspace_bytes());
    given = workspace->span();
  }
  if (is_backward) {
    backward = attention->backward(backward_args(), given, stream);
  } else {
    forward = attention->forward(forward_args(), given, stream);
  }
  memory->synchronize(stream);
  if (workspace) require_intact(workspace->intact(), rank, "the workspace");
  if (guard == Guard::kNone) return;
  fetch_outputs();
  require_intact_outputs();
}

void RingRank::fetch_outputs() {
  for (LocalTensor* t : outputs()) t->fetch();
}

void RingRank::require_intact_outputs() const {
  require_intact(out.intact(), rank, "out");
  require_intact(lse.intact(), rank, "lse");
  require_intact(dquery.intact(), rank, "dquery");
  require_intact(dkey.intact(), rank, "dkey");
  require_intact(dvalue.intact(), rank, "dvalue");
  require_intact(dsinks.intact(), rank, "dsinks");
}

}  // namespace ringattn::support
