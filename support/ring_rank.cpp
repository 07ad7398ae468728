// SPDX-License-Identifier: Apache-2.0
#include "support/ring_rank.h"

#include <algorithm>
#include <string>

namespace ringattn::support {
namespace {

constexpr std::size_t kWorkspaceAlignment = 64;  // what RingAttention asks for
constexpr std::size_t kWorkspaceCanary = 256;    // bytes; more than the widest store

/// The rows of dimension `seq_dim` that a rank holds; an absent view stays absent.
LocalTensor cut(const ConstTensorView& global, int seq_dim, Layout layout, int world, int rank,
                bool guarded) {
  if (!global.present()) return {};
  std::vector<std::int64_t> shape = shape_of(global);
  shape[static_cast<std::size_t>(seq_dim)] =
      positions(layout, global.dim(seq_dim), world, rank).size();
  LocalTensor local(global.dtype, shape, guarded);
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

GuardedWorkspace::GuardedWorkspace(std::size_t bytes)
    : memory_(bytes + kWorkspaceAlignment + kWorkspaceCanary, std::byte{0xFF}), bytes_(bytes) {
  void* at = memory_.data();
  std::size_t space = memory_.size();
  std::align(kWorkspaceAlignment, bytes + kWorkspaceCanary, at, space);
  begin_ = memory_.size() - space;
}

bool GuardedWorkspace::intact() const {
  const auto after = memory_.begin() + static_cast<std::ptrdiff_t>(begin_ + bytes_);
  return std::all_of(after, memory_.end(), [](std::byte b) { return b == std::byte{0xFF}; });
}

ForwardArgs RingJob::Rank::forward_args() {
  ForwardArgs args;
  args.query = query.argument();
  args.key = key.argument();
  args.value = value.argument();
  args.q_segment_ids = q_ids.argument();
  args.kv_segment_ids = kv_ids.argument();
  args.q_positions = q_positions.argument();
  args.kv_positions = kv_positions.argument();
  args.sinks = sinks.argument();
  args.out = out.argument();
  args.lse = lse.argument();
  return args;
}

BackwardArgs RingJob::Rank::backward_args() {
  BackwardArgs args;
  args.query = query.argument();
  args.key = key.argument();
  args.value = value.argument();
  args.q_segment_ids = q_ids.argument();
  args.kv_segment_ids = kv_ids.argument();
  args.q_positions = q_positions.argument();
  args.kv_positions = kv_positions.argument();
  args.sinks = sinks.argument();
  args.out = out.argument();
  args.lse = lse.argument();
  args.dout = dout.argument();
  args.dlse = dlse.argument();
  args.dquery = dquery.argument();
  args.dkey = dkey.argument();
  args.dvalue = dvalue.argument();
  args.dsinks = dsinks.argument();
  return args;
}

void RingJob::Rank::for_tensors(bool outputs, const std::function<void(LocalTensor&)>& f) {
  if (!outputs) {
    for (LocalTensor* t : {&query, &key, &value, &q_ids, &kv_ids, &q_positions, &kv_positions,
                           &sinks, &dout, &dlse}) {
      f(*t);
    }
  }
  for (LocalTensor* t : {&out, &lse, &dquery, &dkey, &dvalue, &dsinks}) f(*t);
}

void RingJob::Rank::cut_inputs(const RingInputs& in, Layout layout, int world, bool guarded) {
  const auto rows = [&](const ConstTensorView& global, int seq_dim) {
    return cut(global, seq_dim, layout, world, rank, guarded);
  };
  query = rows(in.query, 1);
  key = rows(in.key, 1);
  value = rows(in.value, 1);
  q_ids = rows(in.q_segment_ids, 1);
  kv_ids = rows(in.kv_segment_ids, 1);
  q_positions = rows(in.q_positions, 0);
  kv_positions = rows(in.kv_positions, 0);
  dout = rows(in.dout, 1);
  dlse = rows(in.dlse, 2);
  sinks = cut(in.sinks, 0, Layout::kContiguous, 1, 0, guarded);  // every rank has all of them
}

void RingJob::Rank::make_outputs(const RingSettings& settings, const Problem& problem) {
  const auto like = [&](const LocalTensor& t, DType dtype) {
    return LocalTensor(dtype, shape_of(t.view()), settings.guarded);
  };
  const ConstTensorView q = query.view();
  out = LocalTensor(settings.out_dtype.value_or(problem.dtype),
                    {q.dim(0), q.dim(1), q.dim(2), value.view().dim(3)}, settings.guarded);
  if (settings.lse || settings.backward) {
    lse = LocalTensor(settings.lse_dtype, {q.dim(0), q.dim(2), q.dim(1)}, settings.guarded);
  }
  if (!settings.backward) return;
  const DType grad = settings.grad_dtype.value_or(problem.dtype);
  dquery = like(query, grad);
  dkey = like(key, grad);
  dvalue = like(value, grad);
  if (sinks.present()) dsinks = like(sinks, settings.lse_dtype);
}

void RingJob::Rank::require_intact_outputs() const {
  require_intact(out.intact(), rank, "out");
  require_intact(lse.intact(), rank, "lse");
  require_intact(dquery.intact(), rank, "dquery");
  require_intact(dkey.intact(), rank, "dkey");
  require_intact(dvalue.intact(), rank, "dvalue");
  require_intact(dsinks.intact(), rank, "dsinks");
}

}  // namespace ringattn::support
