// SPDX-License-Identifier: Apache-2.0
// What is done to the tensors of a call around the kernels, in the memory of one kind of device
// and in the order of a stream: the same verbs for hosts and GPUs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "bitmap.h"
#include "ringattn/communicator.h"
#include "ringattn/executor.h"
#include "ringattn/tensor.h"
#include "schedule.h"

namespace ringattn {

/// A position as schedules may have it: they need room for the one behind it. Calls from C++ are
/// checked where the host can read them; on a device, and from other front ends, it is bent.
RINGATTN_HOST_DEVICE constexpr std::int64_t schedulable(std::int64_t position) {
  return position < INT64_MAX ? position : INT64_MAX - 1;
}

class Memory {
 public:
  virtual ~Memory() = default;

  /// May the host read it? Then segment ids and positions decide which hops are dead.
  virtual bool on_host() const = 0;

  /// 64-byte aligned. Throws std::bad_alloc, or Error(kUnsupported) with the device's reason.
  virtual std::byte* allocate(std::size_t bytes) const = 0;
  virtual void free(std::byte* data) const noexcept = 0;

  /// From the host, complete on return: for plans, not for calls.
  virtual void upload(std::byte* to, std::span<const std::byte> from) const = 0;

  /// To the host, after everything that was enqueued before: for tests and tools.
  virtual void download(std::span<std::byte> to, const std::byte* from) const = 0;

  /// A stream of one's own, and when its work is done. The host's are null and always done.
  virtual Stream make_stream() const = 0;
  virtual void destroy(Stream stream) const noexcept = 0;
  virtual void synchronize(Stream stream) const = 0;

  virtual void copy(std::byte* to, std::span<const std::byte> from, Stream stream) const = 0;
  virtual void zero(std::span<std::byte> data, Stream stream) const = 0;

  /// sum[i] += part[i].
  virtual void add(double* sum, const double* part, std::int64_t n, Stream stream) const = 0;

  /// Copies strided [B, S, heads, dim] rows to contiguous memory.
  virtual void pack(const ConstTensorView& from, std::byte* to, Executor& executor,
                    Stream stream) const = 0;

  /// Copies a strided int32 [B, rows] view to contiguous memory.
  virtual void copy_ids(const ConstTensorView& view, std::int32_t* out, Stream stream) const = 0;

  /// Copies an int32 or int64 [rows] view to contiguous int64, schedulable().
  virtual void copy_positions(const ConstTensorView& view, std::int64_t* out,
                              Stream stream) const = 0;

  /// Fills bounds[b * tiles.count() + t] from ids[b * tiles.positions.size() + i].
  virtual void segment_bounds(const std::int32_t* ids, std::int64_t batch, const Tiling& tiles,
                              SegmentBounds* bounds, Stream stream) const = 0;

  /// Fills spans[t] with the range of the explicit positions of tile t.
  virtual void tile_spans(const Tiling& tiles, Range* spans, Stream stream) const = 0;

  /// One logit per head from softmax_aux in any of its forms; -inf where there is none.
  virtual void combine_sinks(const ConstTensorView& sinks, std::int64_t heads, double* out,
                             Stream stream) const = 0;

  /// The gradient of softmax_aux from that of each head's logit.
  virtual void spread_sink_gradients(const ConstTensorView& sinks, const double* dhead,
                                     std::int64_t heads, TensorView dsinks,
                                     Stream stream) const = 0;
};

/// Plain memory; streams mean nothing.
const Memory& host_memory();

/// Memory that goes when its owner goes.
struct MemoryDelete {
  const Memory* memory = nullptr;
  void operator()(std::byte* data) const { memory->free(data); }
};
using Allocation = std::unique_ptr<std::byte[], MemoryDelete>;
inline Allocation allocate(const Memory& memory, std::size_t bytes) {
  return {memory.allocate(bytes), {&memory}};
}

}  // namespace ringattn
