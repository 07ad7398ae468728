// SPDX-License-Identifier: Apache-2.0
#include "cpu/packed_block.h"

#include <algorithm>

#include "workspace.h"

namespace ringattn::cpu {
namespace {

std::int64_t most_key_tiles(const Plan& plan, std::int64_t rows) {
  std::int64_t most = 0;
  for (int r = 0; r < plan.world(); ++r) {
    most = std::max(most, Tiling{plan.key_rows(r), rows, nullptr}.count());
  }
  return most;
}

float* floats(std::byte* at) { return reinterpret_cast<float*>(at); }
const float* floats(const std::byte* at) { return reinterpret_cast<const float*>(at); }

}  // namespace

PackedBlock::PackedBlock(const Plan& plan, Pass pass)
    : operands_(plan),
      pass_(pass),
      tile_rows_(plan.tiles(pass).keys),
      planes_(plan.problem().batch * plan.problem().kv_heads),
      tiles_(most_key_tiles(plan, tile_rows_)) {
  const Problem& p = plan.problem();
  values_row_ = row_stride(p.value_dim);
  const std::int64_t n = row_stride(tile_rows_);
  const std::int64_t rows = operands_.words(tile_rows_);
  Carver carver;
  carver.take_array<float>(operands_.words(p.head_dim) * n);
  second_ = carver.used();
  carver.take_array<float>(pass == Pass::kForward ? rows * values_row_
                                                  : operands_.words(p.value_dim) * n);
  third_ = carver.used();
  carver.take_array<float>(pass == Pass::kForward ? 0 : rows * row_stride(p.head_dim));
  state_ = carver.used();
  carver.take_array<State>(1);
  tile_bytes_ = carver.used();
}

void PackedBlock::pack(const StepContext& step, std::int64_t plane, std::int64_t j, std::byte* at,
                       std::int64_t n, bool keys_only) const {
  const Problem& p = step.plan.problem();
  const Tile tile = step.schedule.keys[j];
  const std::int64_t stride = row_stride(tile_rows_);
  const auto widen = [&](const ConstTensorView& v, std::int64_t columns, std::byte* to,
                         std::int64_t row) {
    const auto* from =
        static_cast<const std::byte*>(v.data) +
        offset(v, plane / p.kv_heads, tile.row, plane % p.kv_heads) * size_of(v.dtype);
    return Widen{false, operands_.format, from, v.stride(1), tile.rows, columns, floats(to), row};
  };
  State& packed = state(at, n);
  at += static_cast<std::size_t>(n) * tile_bytes_;
  operands_.right_transposed(widen(step.key, p.head_dim, at, stride));
  bool finite = true;
  if (keys_only) {
    // Nothing is known of the values.
  } else if (pass_ == Pass::kForward) {
    finite = operands_.right(widen(step.value, p.value_dim, at + second_, values_row_));
  } else {
    operands_.right_transposed(widen(step.value, p.value_dim, at + second_, stride));
    finite = operands_.right(widen(step.key, p.head_dim, at + third_, row_stride(p.head_dim)));
  }
  packed = finite ? State::kFinite : State::kNotFinite;
}

void PackedBlock::pack(const StepContext& step, std::int64_t first, std::byte* at,
                       std::int64_t room) const {
  const std::int64_t count = step.schedule.keys.count();
  step.executor.run((planes_ - first) * count, [&](std::int64_t n) {
    pack(step, first + n / count, n % count, at, room * count + n);
  });
}

PackedTile PackedBlock::tile(const std::byte* at, std::int64_t n) const {
  at += static_cast<std::size_t>(n) * tile_bytes_;
  return {floats(at),           floats(at + second_),
          floats(at + second_), floats(at + third_),
          values_row_,          static_cast<State>(at[state_]) == State::kFinite};
}

}  // namespace ringattn::cpu
