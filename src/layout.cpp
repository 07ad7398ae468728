// SPDX-License-Identifier: Apache-2.0
#include "ringattn/layout.h"

#include <cstring>

namespace ringattn {
namespace {

/// A view as four dimensions with one of them named; missing dimensions have extent 1.
struct Rows {
  std::int64_t shape[4] = {1, 1, 1, 1};
  std::int64_t strides[4] = {0, 0, 0, 0};

  explicit Rows(const ConstTensorView& view) {
    for (int d = 0; d < view.rank; ++d) {
      shape[d] = view.dim(d);
      strides[d] = view.stride(d);
    }
  }
};

/// Copies local row i <-> global row p(i) of dimension `seq_dim`, element by element.
template <bool kToLocal>
void copy_rows(const ConstTensorView& global, int seq_dim, const Positions& p,
               const ConstTensorView& local, std::byte* out) {
  const Rows g(global);
  const Rows l(local);
  const std::int64_t size = size_of(local.dtype);
  const auto* from = static_cast<const std::byte*>(kToLocal ? global.data : local.data);
  const bool block = l.strides[local.rank - 1] == 1 && g.strides[global.rank - 1] == 1 &&
                     local.rank - 1 != seq_dim;
  const int inner = local.rank - 1;
  const std::int64_t run = block ? l.shape[inner] : 1;
  std::int64_t extent[4] = {l.shape[0], l.shape[1], l.shape[2], l.shape[3]};
  if (block) extent[inner] = run > 0 ? 1 : 0;
  std::int64_t i[4];
  for (i[0] = 0; i[0] < extent[0]; ++i[0]) {
    for (i[1] = 0; i[1] < extent[1]; ++i[1]) {
      for (i[2] = 0; i[2] < extent[2]; ++i[2]) {
        for (i[3] = 0; i[3] < extent[3]; ++i[3]) {
          std::int64_t at_local = 0;
          std::int64_t at_global = 0;
          for (int d = 0; d < 4; ++d) {
            at_local += i[d] * l.strides[d];
            at_global += (d == seq_dim ? p(i[d]) : i[d]) * g.strides[d];
          }
          std::memcpy(out + (kToLocal ? at_local : at_global) * size,
                      from + (kToLocal ? at_global : at_local) * size,
                      static_cast<std::size_t>(run * size));
        }
      }
    }
  }
}

}  // namespace

void shard(ConstTensorView global, int seq_dim, Layout layout, std::int64_t world,
           std::int64_t rank, TensorView local) {
  if (local.elements() == 0) return;
  copy_rows<true>(global, seq_dim, positions(layout, global.dim(seq_dim), world, rank), local,
                  static_cast<std::byte*>(local.data));
}

void unshard(ConstTensorView local, int seq_dim, Layout layout, std::int64_t world,
             std::int64_t rank, TensorView global) {
  if (local.elements() == 0) return;
  copy_rows<false>(global, seq_dim, positions(layout, global.dim(seq_dim), world, rank), local,
                   static_cast<std::byte*>(global.data));
}

}  // namespace ringattn
