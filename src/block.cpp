// SPDX-License-Identifier: Apache-2.0
#include "block.h"

#include "backend.h"
#include "memory.h"

namespace ringattn {
namespace {

/// Where the parts of the own block begin; alone, keys and values stay where they are.
std::byte* part(const Plan& plan, const Workspace& workspace, std::size_t offset) {
  const std::size_t skipped = plan.world() > 1 ? 0 : plan.block_layout(plan.rank()).ids;
  return workspace.own_block.data() + (offset - skipped);
}

/// Are they read where the caller has them?
bool stay(const Plan& plan, const ConstTensorView& ids) {
  return plan.world() == 1 && contiguous(ids);
}

ConstTensorView rows(const void* data, DType dtype, std::int64_t batch, std::int64_t seq,
                     std::int64_t heads, std::int64_t dim) {
  return ConstTensorView(data, dtype, {batch, seq, heads, dim});
}

}  // namespace

void pack_own_block(const Plan& plan, const ConstTensorView& key, const ConstTensorView& value,
                    const ConstTensorView& ids, const ConstTensorView& positions,
                    const Workspace& workspace, Executor& executor, Stream stream) {
  const Memory& memory = plan.backend().memory();
  const BlockLayout layout = plan.block_layout(plan.rank());
  if (plan.world() > 1 && workspace.shared_block.empty()) {  // else nobody reads but that
    memory.pack(key, part(plan, workspace, layout.key), executor, stream);
    memory.pack(value, part(plan, workspace, layout.value), executor, stream);
  }
  if (plan.options().segment_ids && !stay(plan, ids)) {
    memory.copy_ids(ids, reinterpret_cast<std::int32_t*>(part(plan, workspace, layout.ids)),
                    stream);
  }
  if (plan.options().explicit_positions) {
    memory.copy_positions(positions,
                          reinterpret_cast<std::int64_t*>(part(plan, workspace, layout.positions)),
                          stream);
  }
}

KeyBlock unpack(const Plan& plan, int owner, std::span<const std::byte> message) {
  const Problem& p = plan.problem();
  const BlockLayout layout = plan.block_layout(owner);
  const std::int64_t seq = plan.key_rows(owner).size();
  const std::byte* base = message.data();
  KeyBlock block;
  block.key = rows(base + layout.key, p.dtype, p.batch, seq, p.kv_heads, p.head_dim);
  block.value = rows(base + layout.value, p.dtype, p.batch, seq, p.kv_heads, p.value_dim);
  if (plan.options().segment_ids) {
    block.ids = reinterpret_cast<const std::int32_t*>(base + layout.ids);
  }
  if (plan.options().explicit_positions) {
    block.positions = reinterpret_cast<const std::int64_t*>(base + layout.positions);
  }
  return block;
}

KeyBlock own_block(const Plan& plan, const ConstTensorView& key, const ConstTensorView& value,
                   const ConstTensorView& ids, const Workspace& workspace) {
  const BlockLayout layout = plan.block_layout(plan.rank());
  KeyBlock block{key, value, nullptr, nullptr};
  if (plan.options().segment_ids) {
    block.ids = stay(plan, ids)
                    ? static_cast<const std::int32_t*>(ids.data)
                    : reinterpret_cast<const std::int32_t*>(part(plan, workspace, layout.ids));
  }
  if (plan.options().explicit_positions) {
    block.positions =
        reinterpret_cast<const std::int64_t*>(part(plan, workspace, layout.positions));
  }
  return block;
}

}  // namespace ringattn
