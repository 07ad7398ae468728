// SPDX-License-Identifier: Apache-2.0
#include "cuda/device_memory.h"

#include <algorithm>

#include "cuda/check.h"
#include "dtype.h"
#include "sinks.h"

namespace ringattn::cuda {
namespace {

constexpr int kThreads = 256;

/// Blocks for n items with one thread each; kernels stride over the rest.
unsigned blocks_for(std::int64_t n) {
  return static_cast<unsigned>(std::clamp<std::int64_t>(ceil_div(n, kThreads), 1, 1 << 16));
}

template <class F>
__global__ void each_kernel(std::int64_t n, F f) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += step) {
    f(i);
  }
}

/// f(i) for every i < n, one thread each.
template <class F>
void for_each(std::int64_t n, Stream stream, const F& f) {
  if (n <= 0) return;
  each_kernel<<<blocks_for(n), kThreads, 0, native(stream)>>>(n, f);
  check(cudaGetLastError(), "a kernel launch");
}

template <class F>
__global__ void each_warp_kernel(std::int64_t n, F f) {
  constexpr int kWarps = kThreads / 32;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kWarps;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; i < n;
       i += step) {
    f(i, static_cast<int>(threadIdx.x % 32));
  }
}

/// f(i, lane) for every i < n, one warp each.
template <class F>
cudaError_t for_each_warp(std::int64_t n, cudaStream_t stream, const F& f) {
  if (n <= 0) return cudaSuccess;
  each_warp_kernel<<<blocks_for(32 * n), kThreads, 0, stream>>>(n, f);
  return cudaGetLastError();
}
template <class F>
void for_each_warp(std::int64_t n, Stream stream, const F& f) {
  check(for_each_warp(n, native(stream), f), "a kernel launch");
}

constexpr unsigned kAllLanes = 0xFFFFFFFFU;

/// Element `i` of a contiguous [B, S, heads, dim] tensor, in a strided one.
__host__ __device__ std::int64_t strided(const TensorView& view, std::int64_t i) {
  const std::int64_t d = i % view.shape[3];
  const std::int64_t h = i / view.shape[3] % view.shape[2];
  const std::int64_t s = i / view.shape[3] / view.shape[2] % view.shape[1];
  const std::int64_t b = i / view.shape[3] / view.shape[2] / view.shape[1];
  return b * view.strides[0] + s * view.strides[1] + h * view.strides[2] + d * view.strides[3];
}

TensorView mutable_view(const ConstTensorView& view) {
  TensorView v;
  v.data = const_cast<void*>(view.data);
  v.dtype = view.dtype;
  v.rank = view.rank;
  v.shape = view.shape;
  v.strides = view.strides;
  return v;
}

template <class T>
void pack_as(const TensorView& from, std::byte* to, Stream stream) {
  auto* out = reinterpret_cast<T*>(to);
  for_each(from.elements(), stream, [=] __device__(std::int64_t i) {
    out[i] = static_cast<const T*>(from.data)[strided(from, i)];
  });
}

class DeviceMemory final : public Memory {
 public:
  bool on_host() const override { return false; }

  std::byte* allocate(std::size_t bytes) const override {
    // Allowed while a stream is captured, as what is allocated outlives the graph.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode), "the capture mode");
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, std::max<std::size_t>(bytes, 1));
    check(cudaThreadExchangeStreamCaptureMode(&mode), "the capture mode");
    if (error == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      throw Error(ErrorCode::kUnsupported,
                  "workspace: the GPU has no " + std::to_string(bytes) + " bytes of memory left");
    }
    check(error, "cudaMalloc");
    return static_cast<std::byte*>(data);
  }
  void free(std::byte* data) const noexcept override { (void)cudaFree(data); }

  void upload(std::byte* to, std::span<const std::byte> from) const override {
    check(cudaMemcpy(to, from.data(), from.size(), cudaMemcpyHostToDevice), "an upload");
    // A few bytes may still be on their way, and streams of the caller's do not wait for them.
    check(cudaStreamSynchronize(nullptr), "an upload");
  }
  void download(std::span<std::byte> to, const std::byte* from) const override {
    check(cudaDeviceSynchronize(), "waiting for the GPU");
    check(cudaMemcpy(to.data(), from, to.size(), cudaMemcpyDeviceToHost), "a download");
  }
  Stream make_stream() const override {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    return {stream};
  }
  void destroy(Stream stream) const noexcept override { (void)cudaStreamDestroy(native(stream)); }
  void synchronize(Stream stream) const override {
    check(cudaStreamSynchronize(native(stream)), "waiting for a stream");
  }

  void copy(std::byte* to, std::span<const std::byte> from, Stream stream) const override {
    if (to == from.data() || from.empty()) return;
    check(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyDeviceToDevice, native(stream)),
          "a copy");
  }
  void zero(std::span<std::byte> data, Stream stream) const override {
    if (data.empty()) return;
    check(cudaMemsetAsync(data.data(), 0, data.size(), native(stream)), "cudaMemset");
  }
  void add(double* sum, const double* part, std::int64_t n, Stream stream) const override {
    for_each(n, stream, [=] __device__(std::int64_t i) { sum[i] += part[i]; });
  }

  void pack(const ConstTensorView& from, std::byte* to, Executor&, Stream stream) const override {
    const TensorView view = mutable_view(from);
    if (size_of(from.dtype) == 2) {
      pack_as<std::uint16_t>(view, to, stream);
    } else {
      pack_as<std::uint32_t>(view, to, stream);
    }
  }

  void copy_ids(const ConstTensorView& view, std::int32_t* out, Stream stream) const override {
    const std::int64_t rows = view.dim(1);
    const auto* data = static_cast<const std::int32_t*>(view.data);
    const std::int64_t batch = view.stride(0);
    const std::int64_t step = view.stride(1);
    for_each(view.dim(0) * rows, stream,
             [=] __device__(std::int64_t i) { out[i] = data[i / rows * batch + i % rows * step]; });
  }

  void copy_positions(const ConstTensorView& view, std::int64_t* out,
                      Stream stream) const override {
    const void* data = view.data;
    const DType dtype = view.dtype;
    const std::int64_t step = view.stride(0);
    for_each(view.dim(0), stream, [=] __device__(std::int64_t i) {
      out[i] = schedulable(load_position(dtype, data, i * step));
    });
  }

  void segment_bounds(const std::int32_t* ids, std::int64_t batch, const Tiling& tiles,
                      SegmentBounds* bounds, Stream stream) const override {
    const std::int64_t count = tiles.count();
    for_each_warp(batch * count, stream, [=] __device__(std::int64_t n, int lane) {
      const Tile tile = tiles[n % count];
      const std::int32_t* of_tile = ids + n / count * tiles.positions.size() + tile.row;
      SegmentBounds mine;
      for (std::int64_t i = lane; i < tile.rows; i += 32) mine.add(of_tile[i]);
      const SegmentBounds all{__reduce_min_sync(kAllLanes, mine.lo),
                              __reduce_max_sync(kAllLanes, mine.hi),
                              __any_sync(kAllLanes, mine.padding) != 0};
      if (lane == 0) bounds[n] = all;
    });
  }

  void tile_spans(const Tiling& tiles, Range* spans, Stream stream) const override {
    const std::int64_t rows = tiles.positions.size();
    for_each_warp(ceil_div(rows, tiles.size), stream, [=] __device__(std::int64_t t, int lane) {
      const std::int64_t begin = t * tiles.size;
      const std::int64_t count = rows - begin < tiles.size ? rows - begin : tiles.size;
      // A lane without a row of its own looks at the first one.
      Range all = span_of(tiles.positions.list + begin, 1);
      for (std::int64_t i = lane; i < count; i += 32) {
        const Range one = span_of(tiles.positions.list + begin + i, 1);
        all = {min(all.begin, one.begin), max(all.end, one.end)};
      }
      for (int other = 16; other > 0; other /= 2) {
        all = {min(all.begin, __shfl_xor_sync(kAllLanes, all.begin, other)),
               max(all.end, __shfl_xor_sync(kAllLanes, all.end, other))};
      }
      if (lane == 0) spans[t] = all;
    });
  }

  void combine_sinks(const ConstTensorView& sinks, std::int64_t heads, double* out,
                     Stream stream) const override {
    const SinkView view(sinks, heads);
    for_each(heads, stream, [=] __device__(std::int64_t h) { out[h] = view.logit(h); });
  }

  void spread_sink_gradients(const ConstTensorView& sinks, const double* dhead, std::int64_t heads,
                             TensorView dsinks, Stream stream) const override {
    const SinkView view(sinks, heads);
    for_each(view.groups(), stream,
             [=] __device__(std::int64_t g) { view.store_gradients(dhead, g, dsinks); });
  }
};

}  // namespace

const Memory& device_memory() {
  static const DeviceMemory memory;
  return memory;
}

cudaError_t find_seen_tiles(const SegmentBounds* own, int own_tiles, const SegmentBounds* others,
                            int other_tiles, int batch, TileSpan* seen, cudaStream_t stream) {
  const std::int64_t tiles = std::int64_t{batch} * own_tiles;
  return for_each_warp(tiles, stream, [=] __device__(std::int64_t n, int lane) {
    const SegmentBounds mine = own[n];
    const SegmentBounds* theirs = others + n / own_tiles * other_tiles;
    const auto some_of = [&](int first) {  // of 32
      const int t = first + lane;
      return __ballot_sync(kAllLanes,
                           t < other_tiles && classify(mine, theirs[t]) != TileKind::kSkip);
    };
    TileSpan span{other_tiles, 0};
    for (int first = 0; first < other_tiles && span.begin == other_tiles; first += 32) {
      const unsigned some = some_of(first);
      if (some != 0) span.begin = first + __ffs(static_cast<int>(some)) - 1;
    }
    for (int first = (other_tiles - 1) & ~31; first + 32 > span.begin && span.end == 0;
         first -= 32) {
      const unsigned some = some_of(first);
      if (some != 0) span.end = first + 32 - __clz(static_cast<int>(some));
    }
    if (lane == 0) seen[n] = span;
  });
}

void accumulate(float* sum, const float* part, std::int64_t n, Stream stream) {
  for_each(n, stream, [=] __device__(std::int64_t i) { sum[i] += part[i]; });
}

void store(const float* sum, const TensorView& out, Stream stream) {
  for_each(out.elements(), stream, [=] __device__(std::int64_t i) {
    ringattn::store(out.dtype, out.data, strided(out, i), static_cast<double>(sum[i]));
  });
}

}  // namespace ringattn::cuda
