// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "dtype.h"
#include "sinks.h"
#include "workspace.h"

namespace ringattn {
namespace {

class HostMemory final : public Memory {
 public:
  bool on_host() const override { return true; }

  std::byte* allocate(std::size_t bytes) const override {
    return static_cast<std::byte*>(
        ::operator new (bytes + Carver::kAlignment, std::align_val_t{Carver::kAlignment}));
  }
  void free(std::byte* data) const noexcept override {
    ::operator delete (data, std::align_val_t{Carver::kAlignment});
  }
  void upload(std::byte* to, std::span<const std::byte> from) const override { copy(to, from, {}); }
  void download(std::span<std::byte> to, const std::byte* from) const override {
    copy(to.data(), {from, to.size()}, {});
  }
  Stream make_stream() const override { return {}; }
  void destroy(Stream) const noexcept override {}
  void synchronize(Stream) const override {}
  void copy(std::byte* to, std::span<const std::byte> from, Stream) const override {
    if (to != from.data() && !from.empty()) std::memcpy(to, from.data(), from.size());
  }
  void zero(std::span<std::byte> data, Stream) const override {
    std::fill(data.begin(), data.end(), std::byte{0});
  }
  void add(double* sum, const double* part, std::int64_t n, Stream) const override {
    for (std::int64_t i = 0; i < n; ++i) sum[i] += part[i];
  }

  /// One task per (batch row, 64 positions).
  void pack(const ConstTensorView& from, std::byte* to, Executor& executor, Stream) const override {
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

  void copy_ids(const ConstTensorView& view, std::int32_t* out, Stream) const override {
    const auto* data = static_cast<const std::int32_t*>(view.data);
    for (std::int64_t b = 0; b < view.dim(0); ++b) {
      for (std::int64_t i = 0; i < view.dim(1); ++i) *out++ = data[offset(view, b, i)];
    }
  }

  void copy_positions(const ConstTensorView& view, std::int64_t* out, Stream) const override {
    for (std::int64_t i = 0; i < view.dim(0); ++i) {
      out[i] = schedulable(load_position(view.dtype, view.data, offset(view, i)));
    }
  }

  void segment_bounds(const std::int32_t* ids, std::int64_t batch, const Tiling& tiles,
                      SegmentBounds* bounds, Stream) const override {
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t t = 0; t < tiles.count(); ++t) {
        *bounds++ = bounds_of(ids + b * tiles.positions.size() + tiles[t].row, tiles[t].rows);
      }
    }
  }

  void tile_spans(const Tiling& tiles, Range* spans, Stream) const override {
    const std::int64_t rows = tiles.positions.size();
    for (std::int64_t t = 0; t * tiles.size < rows; ++t) {
      spans[t] = span_of(tiles.positions.list + t * tiles.size,
                         std::min(tiles.size, rows - t * tiles.size));
    }
  }

  void combine_sinks(const ConstTensorView& sinks, std::int64_t heads, double* out,
                     Stream) const override {
    const SinkView view(sinks, heads);
    for (std::int64_t h = 0; h < heads; ++h) out[h] = view.logit(h);
  }

  void spread_sink_gradients(const ConstTensorView& sinks, const double* dhead, std::int64_t heads,
                             TensorView dsinks, Stream) const override {
    const SinkView view(sinks, heads);
    for (std::int64_t g = 0; g < view.groups(); ++g) view.store_gradients(dhead, g, dsinks);
  }
};

}  // namespace

const Memory& host_memory() {
  static const HostMemory memory;
  return memory;
}

}  // namespace ringattn
