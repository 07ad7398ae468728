// SPDX-License-Identifier: Apache-2.0
// One device, one call: the problem is read off the views.
#include "ringattn/attention.h"

namespace ringattn {
namespace {

void require_rank4(const char* argument, const ConstTensorView& view) {
  if (view.rank == 4) return;
  throw Error(ErrorCode::kInvalidArgument,
              std::string(argument) +
                  ": expected 4 dimensions [batch, seq, heads, head_dim], got " +
                  (view.present() ? std::to_string(view.rank) : "no tensor"));
}

template <class Args>
RingAttention bind(const Args& args, Options& options) {
  require_rank4("query", args.query);
  require_rank4("key", args.key);
  require_rank4("value", args.value);
  Problem problem;
  problem.batch = args.query.dim(0);
  problem.query_seq = args.query.dim(1);
  problem.key_seq = args.key.dim(1);
  problem.query_heads = args.query.dim(2);
  problem.kv_heads = args.key.dim(2);
  problem.head_dim = args.query.dim(3);
  problem.value_dim = args.value.dim(3);
  problem.dtype = args.query.dtype;
  problem.device = args.query.device;
  if (problem.value_dim == 0) {
    throw Error(ErrorCode::kInvalidArgument, "value: expected head_dim >= 1, got 0");
  }
  options.segment_ids = args.q_segment_ids.present() || args.kv_segment_ids.present();
  options.explicit_positions = args.q_positions.present() || args.kv_positions.present();
  return RingAttention(problem, options);
}

}  // namespace

PassCounts attention(const ForwardArgs& args, Options options) {
  return bind(args, options).forward(args);
}

PassCounts attention_backward(const BackwardArgs& args, Options options) {
  return bind(args, options).backward(args);
}

}  // namespace ringattn
