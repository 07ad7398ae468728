// SPDX-License-Identifier: Apache-2.0
#include "xla/hop.h"

#include <cstring>
#include <string>

#include "bind.h"
#include "memory.h"
#include "xla/failures.h"

namespace ringattn::ffi {
namespace {

bool has(const ringattn_config& config, std::int64_t flag) { return (config.flags & flag) != 0; }

/// Positions may be anything at run time; the schedule needs room for position + 1.
std::int64_t tame(std::int64_t position) { return std::min(position, INT64_MAX - 1); }

void require_rows(const char* argument, std::int64_t expected, std::int64_t got) {
  if (expected == got) return;
  throw Error(ErrorCode::kInvalidArgument, std::string(argument) + ": expected " +
                                               std::to_string(expected) + " rows on this rank, " +
                                               "got " + std::to_string(got));
}

}  // namespace

HopOperands::HopOperands(Operands& in, const ringattn_config& config, const HopAttributes& hop) {
  const bool ids = has(config, RINGATTN_SEGMENT_IDS);
  const bool positions = has(config, RINGATTN_POSITIONS);
  query = in.take("query", 4);
  if (hop.packed != 0) {
    message = in.take("message", 2);
  } else {
    key = in.take("key", 4);
    value = in.take("value", 4);
    key_ids = in.take_if(ids, "kv_segment_ids", 2);
    key_positions = in.take_if(positions, "kv_positions", 1);
  }
  rank = in.take("rank", 0);
  query_ids = in.take_if(ids, "q_segment_ids", 2);
  query_positions = in.take_if(positions, "q_positions", 1);
  bitmap = in.take_if(has(config, RINGATTN_BITMAP), "mask", 1);
}

Hop::Hop(Pass pass, const ringattn_config& config, const HopAttributes& hop,
         const HopOperands& operands, const std::vector<std::int64_t>& at, Executor& executor,
         std::span<std::byte> state)
    : executor_(executor), query_(operands.query.view(at)), state_(state) {
  Options options = options_of(config);
  options.executor = std::shared_ptr<Executor>(std::shared_ptr<void>(), &executor);
  const int world = static_cast<int>(config.world);
  const int rank = *static_cast<const std::int32_t*>(operands.rank.data(at));
  fail_if_asked(rank, static_cast<int>(hop.offset));
  plan_.emplace(problem_of(config, query_.dim(0)), options, rank, world, true);
  owner_ = owner_at(rank, static_cast<int>(hop.offset), world);
  require_rows("query", plan_->query_rows(rank).size(), query_.dim(1));

  schedule_ = plan_->pair_schedule(pass, rank, owner_);
  if (operands.bitmap.present()) {
    schedule_.bitmap = read_bitmap(static_cast<const std::uint32_t*>(operands.bitmap.data(at)),
                                   operands.bitmap.elements());
  }
  live_ = plan_->options().explicit_positions ||
          schedule_.live(query_.dim(0), plan_->problem().query_heads);
  if (!live_ && hop.first == 0 && hop.last == 0) return;

  const std::int64_t keys = plan_->key_rows(owner_).size();
  const auto carve = [&](Carver& carver) {
    workspace_ = carve_step(*plan_, pass, carver);
    if (state.empty()) workspace_.state = carver.take(plan_->backend().state_bytes(*plan_, pass));
    find_block(config, operands, at, carver);
  };
  Carver measure;
  carve(measure);
  scratch_.emplace(measure.used());
  Carver carver(scratch_->span());
  carve(carver);
  require_rows("key", keys, block_.key.dim(1));
  if (state.empty()) state_ = workspace_.state;

  bind_queries(*plan_, operands.query_ids.view(at), operands.query_positions.view(at), workspace_,
               {}, schedule_);
  bind_keys(*plan_, owner_, block_, workspace_, {}, schedule_);
}

/// Where K and V lie; ids and positions are copied to scratch, as schedules want them. Without
/// memory behind the carver it only measures.
void Hop::find_block(const ringattn_config& config, const HopOperands& operands,
                     const std::vector<std::int64_t>& at, Carver& carver) {
  const Problem& p = plan_->problem();
  const std::int64_t rows = plan_->key_rows(owner_).size();
  ConstTensorView ids;
  ConstTensorView positions;
  if (operands.message.present()) {
    const MessageLayout m = message_layout(config, rows);
    require_rows("message", m.words, operands.message.dim(1));
    const auto* base = static_cast<const std::byte*>(operands.message.data(at));
    const auto part = [&](std::int64_t word) { return base + word * m.word_bytes; };
    block_.key = ConstTensorView(part(0), p.dtype, {p.batch, rows, p.kv_heads, p.head_dim});
    block_.value =
        ConstTensorView(part(m.value), p.dtype, {p.batch, rows, p.kv_heads, p.value_dim});
    block_.key.strides[0] = block_.value.strides[0] = m.words;
    ids = ConstTensorView(part(m.ids), DType::kInt32, {p.batch, rows});
    ids.strides[0] = m.words * m.word_bytes / 4;
    const bool wide = has(config, RINGATTN_POSITIONS64);
    positions = ConstTensorView(part(m.positions), wide ? DType::kInt64 : DType::kInt32, {rows});
  } else {
    block_.key = operands.key.view(at);
    block_.value = operands.value.view(at);
    ids = operands.key_ids.view(at);
    positions = operands.key_positions.view(at);
  }
  if (has(config, RINGATTN_SEGMENT_IDS)) {
    auto* copy = carver.take_array<std::int32_t>(p.batch * rows);
    if (copy != nullptr) host_memory().copy_ids(ids, copy, {});
    block_.ids = copy;
  }
  if (has(config, RINGATTN_POSITIONS)) {
    auto* copy = carver.take_array<std::int64_t>(rows);
    if (copy != nullptr) {
      host_memory().copy_positions(positions, copy, {});
      std::transform(copy, copy + rows, copy, tame);
    }
    block_.positions = copy;
  }
}

std::size_t Hop::key_sums_bytes() const {
  const Problem& p = plan_->problem();
  return static_cast<std::size_t>(p.batch * plan_->key_rows(owner_).size() * p.kv_heads *
                                  p.head_dim) *
         sizeof(float);
}

StepContext Hop::context(const double* sinks, const HopAttributes& hop) const {
  return {*plan_, schedule_,      query_,        block_.key,         block_.value,
          sinks,  hop.first != 0, hop.last != 0, workspace_.backend, executor_,
          {},     state_};
}

}  // namespace ringattn::ffi
