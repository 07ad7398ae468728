// SPDX-License-Identifier: Apache-2.0
// The XLA handlers: one hop forward, one hop backward. They wait for no other device, and what they
// refuse was refused before, when the program was traced.
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "memory.h"
#include "xla/failures.h"
#include "xla/float_environment.h"
#include "xla/hop.h"
#include "xla/threads.h"

// Declared before they are defined, so that they, and nothing else of XLA's headers, are exported.
extern "C" {
RINGATTN_EXPORT XLA_FFI_Error* ringattn_xla_forward_hop(XLA_FFI_CallFrame* call_frame);
RINGATTN_EXPORT XLA_FFI_Error* ringattn_xla_backward_hop(XLA_FFI_CallFrame* call_frame);
RINGATTN_EXPORT XLA_FFI_Error* ringattn_xla_agree(XLA_FFI_CallFrame* call_frame);
}

namespace ringattn::ffi {
namespace {

namespace xffi = xla::ffi;

using Words = xffi::Span<const std::int64_t>;

ringattn_config config_of(Words words) {
  static_assert(sizeof(ringattn_config) % sizeof(std::int64_t) == 0);
  static_assert(std::is_trivially_copyable_v<ringattn_config>);
  ringattn_config config;
  if (words.size() * sizeof(std::int64_t) != sizeof config) {
    throw Error(ErrorCode::kInternal, "ringattn's XLA handler: config of another version");
  }
  std::memcpy(&config, words.begin(), sizeof config);
  return config;
}

template <class Work>
xffi::Error run(Work work) {
  const DefaultFloats floats;
  ringattn_error error;
  const int code = guarded(&error, work);
  const std::string message = std::string("ring_attention: ") + error.message;
  switch (code) {
    case RINGATTN_OK: return xffi::Error::Success();
    case RINGATTN_INVALID_ARGUMENT: return xffi::Error::InvalidArgument(message);
    case RINGATTN_UNSUPPORTED: return {xffi::ErrorCode::kUnimplemented, message};
    default: return xffi::Error::Internal(message);
  }
}

/// The memory of the state of one index: the result, filled from the operand if XLA gave two. The
/// operand itself may be that of another call too, and is never written.
std::span<std::byte> state_of(const Operand& in, const Operand& out,
                              const std::vector<std::int64_t>& at) {
  if (!out.present()) return {};
  auto* data = static_cast<std::byte*>(out.data(at));
  const std::size_t bytes = static_cast<std::size_t>(out.elements()) * sizeof(float);
  if (in.present() && in.data(at) != data) std::memcpy(data, in.data(at), bytes);
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

xffi::Error forward_hop(xffi::ThreadPool pool, Words words, std::int64_t sinks_rank,
                        std::int64_t offset, std::int64_t first, std::int64_t last,
                        std::int64_t packed, xffi::RemainingArgs args, xffi::RemainingRets rets) {
  return run([&] {
    const ringattn_config config = config_of(words);
    const HopAttributes hop{offset, first, last, packed};
    Operands io(args, rets);
    const HopOperands in(io, config, hop);
    const bool finish = last != 0;
    const Operand sinks =
        io.take_if(finish && sinks_rank > 0, "softmax_aux", static_cast<std::size_t>(sinks_rank));
    const bool ring = config.world > 1;
    const Operand status = io.take_common_if(ring && first == 0, "status");
    const Operand state_in = io.take_if(first == 0, "state", 2);
    Operand out, lse, state_out;
    if (finish) {
      out = io.result("out", 4);
      lse = io.result("lse", 3);
    }
    if (!(first != 0 && finish)) state_out = io.result("state", 2);
    const Operand gate = ring ? io.common_result("gate", 0) : Operand();
    io.finish();
    XlaThreads threads(pool);
    const auto one_index = [&](const std::vector<std::int64_t>& at) {
      const Hop one(Pass::kForward, config, hop, in, at, threads,
                    state_of(state_in, state_out, at));
      if (!one.live() && first == 0 && !finish) return;
      std::vector<double> head_sinks(static_cast<std::size_t>(config.query_heads));
      if (sinks.present())
        host_memory().combine_sinks(sinks.view(at), config.query_heads, head_sinks.data(), {});
      one.plan().backend().forward({one.context(sinks.present() ? head_sinks.data() : nullptr, hop),
                                    out.view(at), lse.view(at)});
    };
    run_hop(status, gate, {&out, &lse, &state_out}, [&] { io.for_each_index(one_index); });
  });
}

xffi::Error backward_hop(xffi::ThreadPool pool, Words words, std::int64_t sinks_rank,
                         std::int64_t offset, std::int64_t first, std::int64_t last,
                         std::int64_t packed, xffi::RemainingArgs args, xffi::RemainingRets rets) {
  return run([&] {
    const ringattn_config config = config_of(words);
    const HopAttributes hop{offset, first, last, packed};
    Operands io(args, rets);
    const HopOperands in(io, config, hop);
    const Operand dout = io.take("dout", 4);
    const bool begin = first != 0;
    const Operand out = io.take_if(begin, "out", 4);
    const Operand lse = io.take_if(begin, "lse", 3);
    const Operand dlse = io.take_if(begin && (config.flags & RINGATTN_DLSE) != 0, "dlse", 3);
    const auto sink_dims = static_cast<std::size_t>(sinks_rank);
    const Operand sinks = io.take_if(begin && sinks_rank > 0, "softmax_aux", sink_dims);
    const bool ring = config.world > 1;
    const Operand status = io.take_common_if(ring && !begin, "status");
    const Operand state_in = io.take_if(!begin, "state", 2);
    // Sums of this rank's own block stay here, as dK and dV; those of others travel in one piece.
    const Operand dkey_sum = io.result(begin ? "dkey" : "sums", begin ? 4 : 2);
    const Operand dvalue_sum = begin ? io.result("dvalue", 4) : Operand();
    Operand dquery, state_out, dsinks;
    if (last != 0) dquery = io.result("dquery", 4);
    if (!(begin && last != 0)) state_out = io.result("state", 2);
    if (sinks.present()) dsinks = io.result("dsoftmax_aux", sink_dims);
    const Operand gate = ring ? io.common_result("gate", 0) : Operand();
    io.finish();
    XlaThreads threads(pool);
    const auto one_index = [&](const std::vector<std::int64_t>& at) {
      auto* dkey = static_cast<std::byte*>(dkey_sum.data(at));
      const Hop one(Pass::kBackward, config, hop, in, at, threads,
                    state_of(state_in, state_out, at));
      if (!one.live() && !begin && last == 0) {
        std::memset(dkey, 0, static_cast<std::size_t>(dkey_sum.elements()) * sizeof(float));
        return;
      }
      std::vector<double> logits(static_cast<std::size_t>(config.query_heads));
      std::vector<double> dlogits(logits.size());
      if (sinks.present())
        host_memory().combine_sinks(sinks.view(at), config.query_heads, logits.data(), {});
      one.plan().backend().backward(
          {one.context(sinks.present() ? logits.data() : nullptr, hop), out.view(at), lse.view(at),
           dout.view(at), dlse.view(at), dquery.view(at),
           sinks.present() ? dlogits.data() : nullptr, dkey,
           begin ? static_cast<std::byte*>(dvalue_sum.data(at)) : dkey + one.key_sums_bytes()});
      if (sinks.present()) {
        host_memory().spread_sink_gradients(sinks.view(at), dlogits.data(), config.query_heads,
                                            dsinks.view(at), {});
      }
    };
    run_hop(status, gate, {&dkey_sum, &dvalue_sum, &dquery, &state_out, &dsinks},
            [&] { io.for_each_index(one_index); });
  });
}

/// The end of a pass: what all ranks have together, or the error of the one that failed.
xffi::Error agree(xffi::AnyBuffer status, xffi::RemainingArgs args, xffi::RemainingRets rets) {
  if (*static_cast<const std::int32_t*>(status.untyped_data()) != 0) {
    return xffi::Error::Internal("ring_attention: " + remembered_failure());
  }
  for (std::size_t i = 0; i < args.size(); ++i) {
    const auto from = *args.get<xffi::AnyBuffer>(i);
    xffi::Result<xffi::AnyBuffer> to = *rets.get<xffi::AnyBuffer>(i);
    if (to->untyped_data() == from.untyped_data()) continue;
    std::memcpy(to->untyped_data(), from.untyped_data(), from.size_bytes());
  }
  return xffi::Error::Success();
}

auto binding() {
  return xffi::Ffi::Bind()
      .Ctx<xffi::ThreadPool>()
      .Attr<Words>("config")
      .Attr<std::int64_t>("sinks_rank")
      .Attr<std::int64_t>("offset")
      .Attr<std::int64_t>("first")
      .Attr<std::int64_t>("last")
      .Attr<std::int64_t>("packed")
      .RemainingArgs()
      .RemainingRets();
}

}  // namespace
}  // namespace ringattn::ffi

XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_forward_hop, ringattn::ffi::forward_hop,
                              ringattn::ffi::binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ringattn_xla_backward_hop, ringattn::ffi::backward_hop,
                              ringattn::ffi::binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ringattn_xla_agree, ringattn::ffi::agree,
    xla::ffi::Ffi::Bind().Arg<xla::ffi::AnyBuffer>().RemainingArgs().RemainingRets());

int32_t ringattn_xla_ffi_minor(void) { return XLA_FFI_API_MINOR; }
