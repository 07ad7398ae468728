// SPDX-License-Identifier: Apache-2.0
#include "xla/passes.h"

#include <cstring>
#include <type_traits>
#include <vector>

#include "xla/failures.h"

namespace ringattn::ffi {
namespace {

using At = std::vector<std::int64_t>;

/// A struct of 8-byte fields that came as an array of them.
template <class T>
T from_words(const char* name, Words words) {
  static_assert(sizeof(T) % sizeof(std::int64_t) == 0 && std::is_trivially_copyable_v<T>);
  T x;
  if (words.size() * sizeof(std::int64_t) != sizeof x) {
    throw Error(ErrorCode::kInternal,
                std::string("ringattn's XLA handler: ") + name + " of another version");
  }
  std::memcpy(&x, words.begin(), sizeof x);
  return x;
}

/// The memory of one index's floats that a hop goes on with: the result, filled from the operand if
/// XLA gave two. The operand itself may be that of another call too, and is never written.
std::span<std::byte> carried(Place& place, const Operand& in, const Operand& out, const At& at) {
  if (!out.present()) return {};
  auto* data = static_cast<std::byte*>(out.data(at));
  const std::size_t bytes = static_cast<std::size_t>(out.elements()) * sizeof(float);
  if (in.present()) {
    place.memory().copy(data, {static_cast<const std::byte*>(in.data(at)), bytes}, place.stream());
  }
  return {data, bytes};
}

/// Runs the work of a hop. On one device it throws. In a ring the new status is the gate, to which
/// the next transfer is tied.
template <class Work>
void run_hop(const Operand& status, const Operand& gate,
             std::initializer_list<const Operand*> results, const Work& work) {
  if (!gate.present()) {
    work();
    return;
  }
  const std::int32_t before =
      status.present() ? *static_cast<const std::int32_t*>(status.data({})) : 0;
  *static_cast<std::int32_t*>(gate.data({})) = run_in_ring(before, results, work);
}

/// What a backward hop has besides HopOperands.
struct GradientOperands {
  Operand dout, out, lse, dlse, sinks, status, state_in, sums_in;
  Operand dkey, dvalue;  // of this rank's own block, which stay here: sums, or rounded already
  Operand sums;          // of another's block: dK and dV travel in one piece
  Operand dquery, state_out, dsinks, gate;
  Operand dout_on;  // dout for the next hop, where it lies: in the end dquery may lie there

  GradientOperands(Operands& io, const HopCall& call) {
    const bool begin = call.hop.first != 0;
    const bool last = call.hop.last != 0;
    const bool ring = call.config.world > 1;
    const auto sink_dims = static_cast<std::size_t>(call.sinks_rank);
    dout = io.take("dout", 4);
    out = io.take_if(begin, "out", 4);
    lse = io.take_if(begin, "lse", 3);
    dlse = io.take_if(begin && (call.config.flags & RINGATTN_DLSE) != 0, "dlse", 3);
    sinks = io.take_if(begin && call.sinks_rank > 0, "softmax_aux", sink_dims);
    status = io.take_common_if(ring && !begin, "status");
    state_in = io.take_if(!begin, "state", 2);
    sums_in = io.take_if(call.hop.adds != 0, "sums", 2);
    if (begin) {
      dkey = io.result("dkey", 4);
      dvalue = io.result("dvalue", 4);
    } else {
      sums = io.result("sums", 2);
    }
    if (last) dquery = io.result("dquery", 4);
    if (!(begin && last)) state_out = io.result("state", 2);
    if (sinks.present()) dsinks = io.result("dsoftmax_aux", sink_dims);
    if (!last && call.config.head_dim == call.config.value_dim) dout_on = io.result("dout", 4);
    if (ring) gate = io.common_result("gate", 0);
    io.finish();
  }
};

/// Where one index's sums of dK and dV go.
struct KeySums {
  std::byte* dkey;
  std::byte* dvalue;
  bool rounded;  // afterwards to the results
};
KeySums key_sums(Place& place, const Hop& hop, const GradientOperands& g, const At& at) {
  if (!g.sums.present()) {
    if (hop.own_sums() != nullptr) {
      return {hop.own_sums(), hop.own_sums() + hop.value_sums_offset(), true};
    }
    return {static_cast<std::byte*>(g.dkey.data(at)), static_cast<std::byte*>(g.dvalue.data(at)),
            false};
  }
  std::byte* data = carried(place, g.sums_in, g.sums, at).data();
  return {data, data + hop.key_sums_bytes(), false};
}

void backward_index(Place& place, const HopCall& call, const HopOperands& in,
                    const GradientOperands& g, const At& at) {
  const Hop one(Pass::kBackward, call.config, call.hop, in, at, place,
                carried(place, g.state_in, g.state_out, at),
                g.dkey.present() && g.dkey.dtype() != DType::kFloat32);
  if (g.dout_on.present()) {
    const ConstTensorView dout = g.dout.view(at);
    place.memory().copy(static_cast<std::byte*>(g.dout_on.data(at)),
                        {static_cast<const std::byte*>(dout.data),
                         static_cast<std::size_t>(dout.elements() * size_of(dout.dtype))},
                        place.stream());
  }
  const KeySums to = key_sums(place, one, g, at);
  if (!one.live() && call.hop.first == 0 && call.hop.last == 0) {
    const std::size_t bytes = static_cast<std::size_t>(g.sums.elements()) * sizeof(float);
    if (call.hop.adds == 0) place.memory().zero({to.dkey, bytes}, place.stream());
    return;
  }
  const Backend& backend = one.plan().backend();
  const bool direct = to.rounded && backend.rounds_gradients();
  backend.backward({one.context(g.sinks.view(at), call.hop), g.out.view(at), g.lse.view(at),
                    g.dout.view(at), g.dlse.view(at), g.dquery.view(at),
                    g.sinks.present() ? one.sink_gradients() : nullptr, to.dkey, to.dvalue,
                    direct ? g.dkey.view(at) : TensorView{},
                    direct ? g.dvalue.view(at) : TensorView{}, call.hop.adds != 0});
  if (to.rounded && !direct) {
    backend.store(to.dkey, g.dkey.view(at), place.executor(), place.stream());
    backend.store(to.dvalue, g.dvalue.view(at), place.executor(), place.stream());
  }
  if (g.sinks.present()) {
    place.memory().spread_sink_gradients(g.sinks.view(at), one.sink_gradients(),
                                         call.config.query_heads, g.dsinks.view(at),
                                         place.stream());
  }
}

}  // namespace

HopCall::HopCall(Words config_words, Words bitmap_words, std::int64_t sinks, std::int64_t offset,
                 std::int64_t first, std::int64_t last, std::int64_t packed, std::int64_t adds)
    : config(from_words<ringattn_config>("config", config_words)),
      hop{offset, first, last, packed, adds, from_words<ringattn_bitmap>("bitmap", bitmap_words)},
      sinks_rank(sinks) {}

void forward_hop(Place& place, const HopCall& call, xla::ffi::RemainingArgs args,
                 xla::ffi::RemainingRets rets) {
  const ringattn_config& config = call.config;
  Operands io(place.device(), args, rets);
  const HopOperands in(io, config, call.hop);
  const bool first = call.hop.first != 0;
  const bool finish = call.hop.last != 0;
  const bool ring = config.world > 1;
  const Operand sinks = io.take_if(finish && call.sinks_rank > 0, "softmax_aux",
                                   static_cast<std::size_t>(call.sinks_rank));
  const Operand status = io.take_common_if(ring && !first, "status");
  const Operand state_in = io.take_if(!first, "state", 2);
  Operand out, lse, state_out;
  if (finish) {
    out = io.result("out", 4);
    lse = io.result("lse", 3);
  }
  if (!(first && finish)) state_out = io.result("state", 2);
  const Operand gate = ring ? io.common_result("gate", 0) : Operand();
  io.finish();
  const auto one_index = [&](const At& at) {
    const Hop one(Pass::kForward, config, call.hop, in, at, place,
                  carried(place, state_in, state_out, at), false);
    if (!one.live() && !first && !finish) return;
    one.plan().backend().forward({one.context(sinks.view(at), call.hop), out.view(at), lse.view(at),
                                  (config.flags & RINGATTN_LSE) != 0});
  };
  run_hop(status, gate, {&out, &lse, &state_out}, [&] { io.for_each_index(one_index); });
}

void backward_hop(Place& place, const HopCall& call, xla::ffi::RemainingArgs args,
                  xla::ffi::RemainingRets rets) {
  Operands io(place.device(), args, rets);
  const HopOperands in(io, call.config, call.hop);
  const GradientOperands g(io, call);
  run_hop(g.status, g.gate, {&g.dkey, &g.dvalue, &g.sums, &g.dquery, &g.state_out, &g.dsinks}, [&] {
    io.for_each_index([&](const At& at) { backward_index(place, call, in, g, at); });
  });
}

}  // namespace ringattn::ffi
