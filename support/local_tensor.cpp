// SPDX-License-Identifier: Apache-2.0
#include "support/local_tensor.h"

#include <algorithm>

namespace ringattn::support {
namespace {

// The canary before and after a guarded tensor is more than any vector register holds, so that a
// store of a whole register beside the end is seen.
// Gaps after each dimension. All in elements.
struct Gaps {
  std::int64_t canary, row, plane;
};
constexpr Gaps gaps(Guard guard) {
  if (guard == Guard::kOdd) return {67, 3, 5};
  return {64, 16, 8};  // a head_dim that is a multiple of 16 bytes keeps rows there
}

/// Strides of a guarded tensor. Four dimensions [b, s, h, d] lie in memory as b, h, s, d with a
/// contiguous d; fewer dimensions have no head_dim, so every second element is a gap.
std::int64_t set_guarded_strides(TensorView& view, const Gaps& gap) {
  const std::array<int, 4> order = view.rank == 4 ? std::array{3, 1, 2, 0} : std::array{3, 2, 1, 0};
  std::int64_t stride = view.rank == 4 ? 1 : 2;
  for (int d : order) {
    if (d >= view.rank) continue;
    view.strides[static_cast<std::size_t>(d)] = stride;
    stride = stride * std::max<std::int64_t>(view.dim(d), 1) + (d == 3 ? gap.row : gap.plane);
  }
  return stride;
}

template <class F>
void for_elements(const TensorView& view, const F& f) {
  std::int64_t extent[4] = {1, 1, 1, 1};
  for (int d = 0; d < view.rank; ++d) extent[d] = view.dim(d);
  for (std::int64_t i = 0; i < extent[0]; ++i) {
    for (std::int64_t j = 0; j < extent[1]; ++j) {
      for (std::int64_t k = 0; k < extent[2]; ++k) {
        for (std::int64_t l = 0; l < extent[3]; ++l) {
          f(i * view.strides[0] + j * view.strides[1] + k * view.strides[2] + l * view.strides[3]);
        }
      }
    }
  }
}

}  // namespace

LocalTensor::LocalTensor(DType dtype, std::vector<std::int64_t> shape, Guard guard) {
  view_.dtype = dtype;
  view_.rank = static_cast<int>(shape.size());
  std::int64_t count = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    view_.shape[d] = shape[d];
    view_.strides[d] = count;
    count *= shape[d];
  }
  std::int64_t canary = 0;
  if (guard != Guard::kNone) {
    count = set_guarded_strides(view_, gaps(guard));
    canary = gaps(guard).canary;
  }
  const std::int64_t size = size_of(dtype);
  bytes_.assign(static_cast<std::size_t>((count + 2 * canary) * size), std::byte{0xFF});
  view_.data = bytes_.data() + canary * size;
}

void LocalTensor::reside(const Memory& memory) {
  if (!present() || memory.on_host()) return;
  copy_ = allocate(memory, bytes_.size());
  memory.upload(copy_.get(), bytes_);
}

void LocalTensor::fetch() {
  if (copy_ != nullptr) copy_.get_deleter().memory->download(bytes_, copy_.get());
}

TensorView LocalTensor::argument() {
  if (copy_ == nullptr) return view_;
  TensorView view = view_;
  view.data = copy_.get() + (static_cast<const std::byte*>(view_.data) - bytes_.data());
  view.device = Device::kCuda;
  return view;
}

bool LocalTensor::intact() const {
  if (!present()) return true;
  std::vector<std::byte> rest = bytes_;
  const auto size = static_cast<std::size_t>(size_of(view_.dtype));
  const auto first =
      static_cast<std::size_t>(static_cast<const std::byte*>(view_.data) - bytes_.data());
  for_elements(view_, [&](std::int64_t at) {
    std::fill_n(
        rest.begin() + static_cast<std::ptrdiff_t>(first + static_cast<std::size_t>(at) * size),
        size, std::byte{0xFF});
  });
  return std::all_of(rest.begin(), rest.end(), [](std::byte b) { return b == std::byte{0xFF}; });
}

}  // namespace ringattn::support
