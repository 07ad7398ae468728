// SPDX-License-Identifier: Apache-2.0
#include "xla/hop.h"

#include <string>

#include "bind.h"
#include "xla/failures.h"

namespace ringattn::ffi {
namespace {

bool has(const ringattn_config& config, std::int64_t flag) { return (config.flags & flag) != 0; }

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
         const HopOperands& operands, const std::vector<std::int64_t>& at, Place& place,
         std::span<std::byte> state, bool own_sums)
    : place_(place), query_(operands.query.view(at)), state_(state) {
  Options options = options_of(config);
  options.executor = std::shared_ptr<Executor>(std::shared_ptr<void>(), &place.executor());
  const int world = static_cast<int>(config.world);
  const int rank = world == 1 ? 0 : *static_cast<const std::int32_t*>(operands.rank.data(at));
  fail_if_asked(rank, static_cast<int>(hop.offset));
  Problem problem = problem_of(config, query_.dim(0));
  problem.device = place.device();
  plan_.emplace(problem, options, rank, world, false);  // no owner shares what it made of a block
  owner_ = owner_at(rank, static_cast<int>(hop.offset), world);
  require_rows("query", plan_->query_rows(rank).size(), query_.dim(1));

  schedule_ = plan_->pair_schedule(pass, rank, owner_);
  if (operands.bitmap.present()) {
    schedule_.bitmap =
        read_bitmap(hop.bitmap, static_cast<const std::uint32_t*>(operands.bitmap.data(at)),
                    operands.bitmap.elements());
  }
  if (hop.first == 0 && hop.last == 0) {  // the others have more to do than what is visible
    live_ = plan_->options().explicit_positions ||
            schedule_.live(query_.dim(0), plan_->problem().query_heads);
    if (!live_) return;
  }

  const std::int64_t keys = plan_->key_rows(owner_).size();
  const auto carve = [&](Carver& carver) {
    workspace_ = carve_step(*plan_, pass, carver);
    if (state.empty()) workspace_.state = carver.take(plan_->backend().state_bytes(*plan_, pass));
    if (own_sums) own_sums_ = carver.take(plan_->sums_bytes(owner_)).data();
    head_sinks_ = carver.take_array<double>(config.query_heads);
    head_dsinks_ = carver.take_array<double>(config.query_heads);
    find_block(config, operands, at, carver);
  };
  Carver measure;
  carve(measure);
  Carver carver(place.scratch(measure.used()));
  carve(carver);
  require_rows("key", keys, block_.key.dim(1));
  if (state.empty()) state_ = workspace_.state;

  bind_queries(*plan_, operands.query_ids.view(at), operands.query_positions.view(at), workspace_,
               place.stream(), schedule_);
  bind_keys(*plan_, owner_, block_, workspace_, place.stream(), schedule_);
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
    if (copy != nullptr) place_.memory().copy_ids(ids, copy, place_.stream());
    block_.ids = copy;
  }
  if (has(config, RINGATTN_POSITIONS)) {
    auto* copy = carver.take_array<std::int64_t>(rows);
    if (copy != nullptr) place_.memory().copy_positions(positions, copy, place_.stream());
    block_.positions = copy;
  }
}

std::size_t Hop::key_sums_bytes() const {
  const Problem& p = plan_->problem();
  return static_cast<std::size_t>(p.batch * plan_->key_rows(owner_).size() * p.kv_heads *
                                  p.head_dim) *
         sizeof(float);
}

StepContext Hop::context(const ConstTensorView& sinks, const HopAttributes& hop) const {
  const double* logits = sinks.present() ? head_sinks_ : nullptr;
  if (sinks.present()) {
    place_.memory().combine_sinks(sinks, plan_->problem().query_heads, head_sinks_,
                                  place_.stream());
  }
  return {*plan_,          schedule_,      query_,        block_.key,         block_.value,
          logits,          hop.first != 0, hop.last != 0, workspace_.backend, place_.executor(),
          place_.stream(), state_};
}

}  // namespace ringattn::ffi
