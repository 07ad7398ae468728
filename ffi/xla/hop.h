// SPDX-License-Identifier: Apache-2.0
// What both passes of one hop have in common: the plan of the rank that is known only now, this
// rank's queries, the block at hand, and the schedule of the two.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backend.h"
#include "block.h"
#include "convert.h"
#include "plan.h"
#include "workspace.h"
#include "xla/operands.h"
#include "xla/place.h"

namespace ringattn::ffi {

/// The attributes of a call besides the config.
struct HopAttributes {
  std::int64_t offset;     // whose block: that of rank - offset
  std::int64_t first;      // no state comes in
  std::int64_t last;       // none goes out
  std::int64_t packed;     // the block is a message; otherwise it is this rank's own, as operands
  std::int64_t adds;       // backward: sums of dK and dV of earlier stops come in
  ringattn_bitmap bitmap;  // what is in the operand `mask`, if there is one
};

/// The operands that every hop begins with, in this order.
struct HopOperands {
  HopOperands(Operands& in, const ringattn_config& config, const HopAttributes& hop);

  Operand query;
  Operand key, value, key_ids, key_positions;  // unless packed
  Operand message;                             // if packed
  Operand rank;
  Operand query_ids, query_positions;
  Operand bitmap;
};

/// One leading index of a hop. `own_sums`: the sums of dK and dV are not results, and lie here.
class Hop {
 public:
  Hop(Pass pass, const ringattn_config& config, const HopAttributes& hop,
      const HopOperands& operands, const std::vector<std::int64_t>& at, Place& place,
      std::span<std::byte> state, bool own_sums);

  const Plan& plan() const { return *plan_; }
  bool live() const { return live_; }
  std::size_t key_sums_bytes() const;  // dK of the block; dV comes behind it
  std::byte* own_sums() const { return own_sums_; }
  std::size_t value_sums_offset() const { return plan_->value_sums_offset(owner_); }  // of those
  double* sink_gradients() const { return head_dsinks_; }                             // [H]

  /// `sinks`: softmax_aux in any of its forms, or absent.
  StepContext context(const ConstTensorView& sinks, const HopAttributes& hop) const;

 private:
  void find_block(const ringattn_config& config, const HopOperands& operands,
                  const std::vector<std::int64_t>& at, Carver& carver);

  std::optional<Plan> plan_;
  Place& place_;
  int owner_ = 0;
  ConstTensorView query_;
  KeyBlock block_;
  PairSchedule schedule_;
  Workspace workspace_;
  std::byte* own_sums_ = nullptr;
  double* head_sinks_ = nullptr;  // [H], one logit each
  double* head_dsinks_ = nullptr;
  std::span<std::byte> state_;
  bool live_ = true;
};

}  // namespace ringattn::ffi
