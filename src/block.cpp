// SPDX-License-Identifier: Apache-2.0
#include "block.h"

#include <algorithm>
#include <cstring>

#include "dtype.h"

namespace ringattn {
namespace {

/// Copies [B, S, heads, dim] rows to contiguous memory; one task per (batch row, 64 positions).
void pack(const ConstTensorView& from, std::byte* to, Executor& executor) {
  if (from.elements() == 0) return;
  constexpr std::int64_t kRows = 64;
  const std::int64_t size = size_of(from.dtype);
  const std::int64_t chunks = ceil_div(from.dim(1), kRows);
  const auto* data = static_cast<const std::byte*>(from.data);
  executor.run(from.dim(0) * chunks, [&](std::int64_t task) {
    const std::int64_t b = task / chunks;
    const std::int64_t end = std::min((task % chunks + 1) * kRows, from.dim(1));
    for (std::int64_t i = task % chunks * kRows; i < end; ++i) {
      for (std::int64_t g = 0; g < from.dim(2); ++g) {
        const std::int64_t at = ((b * from.dim(1) + i) * from.dim(2) + g) * from.dim(3);
        std::memcpy(to + at * size, data + offset(from, b, i, g) * size,
                    static_cast<std::size_t>(from.dim(3) * size));
      }
    }
  });
}

/// Where the parts of the own block begin; alone, keys and values stay where they are.
std::byte* part(const Plan& plan, const Workspace& workspace, std::size_t offset) {
  const std::size_t skipped = plan.world() > 1 ? 0 : plan.block_layout(plan.rank()).ids;
  return workspace.own_block.data() + (offset - skipped);
}

ConstTensorView rows(const void* data, DType dtype, std::int64_t batch, std::int64_t seq,
                     std::int64_t heads, std::int64_t dim) {
  return ConstTensorView(data, dtype, {batch, seq, heads, dim});
}

}  // namespace

void copy_ids(const ConstTensorView& view, std::int32_t* out) {
  const auto* data = static_cast<const std::int32_t*>(view.data);
  for (std::int64_t b = 0; b < view.dim(0); ++b) {
    for (std::int64_t i = 0; i < view.dim(1); ++i) *out++ = data[offset(view, b, i)];
  }
}

void copy_positions(const ConstTensorView& view, std::int64_t* out) {
  for (std::int64_t i = 0; i < view.dim(0); ++i) {
    const std::int64_t at = i * view.stride(0);
    out[i] = view.dtype == DType::kInt64 ? static_cast<const std::int64_t*>(view.data)[at]
                                         : static_cast<const std::int32_t*>(view.data)[at];
  }
}

void pack_own_block(const Plan& plan, const ConstTensorView& key, const ConstTensorView& value,
                    const ConstTensorView& ids, const ConstTensorView& positions,
                    const Workspace& workspace, Executor& executor) {
  const BlockLayout layout = plan.block_layout(plan.rank());
  if (plan.world() > 1) {
    pack(key, part(plan, workspace, layout.key), executor);
    pack(value, part(plan, workspace, layout.value), executor);
  }
  if (plan.options().segment_ids) {
    copy_ids(ids, reinterpret_cast<std::int32_t*>(part(plan, workspace, layout.ids)));
  }
  if (plan.options().explicit_positions) {
    copy_positions(positions,
                   reinterpret_cast<std::int64_t*>(part(plan, workspace, layout.positions)));
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
                   const Workspace& workspace) {
  const BlockLayout layout = plan.block_layout(plan.rank());
  KeyBlock block{key, value, nullptr, nullptr};
  if (plan.options().segment_ids) {
    block.ids = reinterpret_cast<const std::int32_t*>(part(plan, workspace, layout.ids));
  }
  if (plan.options().explicit_positions) {
    block.positions =
        reinterpret_cast<const std::int64_t*>(part(plan, workspace, layout.positions));
  }
  return block;
}

}  // namespace ringattn
