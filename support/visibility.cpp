// SPDX-License-Identifier: Apache-2.0
#include "support/visibility.h"

#include "dtype.h"

namespace ringattn::support {
namespace {

std::vector<std::int64_t> read_positions(const ConstTensorView& view, std::int64_t length) {
  std::vector<std::int64_t> positions(static_cast<std::size_t>(length));
  for (std::int64_t i = 0; i < length; ++i) {
    std::int64_t& p = positions[static_cast<std::size_t>(i)];
    p = i;
    if (!view.present()) continue;
    p = view.dtype == DType::kInt64
            ? static_cast<const std::int64_t*>(view.data)[i * view.stride(0)]
            : static_cast<const std::int32_t*>(view.data)[i * view.stride(0)];
  }
  return positions;
}

std::vector<std::int32_t> read_ids(const ConstTensorView& own, const ConstTensorView& other) {
  const ConstTensorView& view = own.present() ? own : other;
  std::vector<std::int32_t> ids;
  if (!view.present()) return ids;
  for (std::int64_t b = 0; b < view.dim(0); ++b) {
    for (std::int64_t i = 0; i < view.dim(1); ++i) {
      ids.push_back(static_cast<const std::int32_t*>(view.data)[offset(view, b, i)]);
    }
  }
  return ids;
}

}  // namespace

Visibility::Visibility(const Options& options, const RingInputs& in)
    : mask_(options.mask),
      interval_(options.mask.interval()),
      q_positions_(read_positions(in.q_positions, in.query.dim(1))),
      k_positions_(read_positions(in.kv_positions, in.key.dim(1))),
      q_ids_(read_ids(in.q_segment_ids, in.kv_segment_ids)),
      k_ids_(read_ids(in.kv_segment_ids, in.q_segment_ids)) {}

bool Visibility::visible(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
  const auto queries = static_cast<std::int64_t>(q_positions_.size());
  const auto keys = static_cast<std::int64_t>(k_positions_.size());
  if (!q_ids_.empty() && !same_segment(q_ids_[static_cast<std::size_t>(b * queries + i)],
                                       k_ids_[static_cast<std::size_t>(b * keys + j)])) {
    return false;
  }
  const std::int64_t q = q_positions_[static_cast<std::size_t>(i)];
  const std::int64_t k = k_positions_[static_cast<std::size_t>(j)];
  return interval_ ? interval_->visible(q, k) : mask_(h, q, k);
}

void Visibility::row(std::int64_t b, std::int64_t h, std::int64_t i,
                     std::vector<std::int64_t>& keys) const {
  keys.clear();
  for (std::int64_t j = 0; j < static_cast<std::int64_t>(k_positions_.size()); ++j) {
    if (visible(b, h, i, j)) keys.push_back(j);
  }
}

std::int64_t Visibility::pairs(std::int64_t batch, std::int64_t heads) const {
  std::int64_t count = 0;
  std::vector<std::int64_t> keys;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t i = 0; i < static_cast<std::int64_t>(q_positions_.size()); ++i) {
        row(b, h, i, keys);
        count += static_cast<std::int64_t>(keys.size());
      }
    }
  }
  return count;
}

}  // namespace ringattn::support
