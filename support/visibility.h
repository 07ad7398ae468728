// SPDX-License-Identifier: Apache-2.0
// Which keys one query row sees, pair by pair from the definitions: mask, positions, segments.
// Slow on purpose; it knows no tiles and no schedule.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "ringattn/attention.h"
#include "support/ring_run.h"

namespace ringattn::support {

class Visibility {
 public:
  Visibility(const Options& options, const RingInputs& inputs);

  bool visible(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const;

  /// Rows of the keys that row i of head h sees, ascending.
  void row(std::int64_t b, std::int64_t h, std::int64_t i, std::vector<std::int64_t>& keys) const;

  /// Visible pairs over batch and query heads.
  std::int64_t pairs(std::int64_t batch, std::int64_t heads) const;

 private:
  Mask mask_;
  std::optional<IntervalMask> interval_;
  std::vector<std::int64_t> q_positions_, k_positions_;
  std::vector<std::int32_t> q_ids_, k_ids_;  // [B, S], empty without segments
};

}  // namespace ringattn::support
