// SPDX-License-Identifier: Apache-2.0
#include "arguments.h"

#include <initializer_list>

#include "backend.h"
#include "dtype.h"

namespace ringattn {
namespace {

using Shape = std::initializer_list<std::int64_t>;

[[noreturn]] void invalid(const std::string& argument, const std::string& expected,
                          const std::string& got) {
  throw Error(ErrorCode::kInvalidArgument, argument + ": expected " + expected + ", got " + got);
}

std::string text(Shape shape) {
  std::string s = "[";
  for (std::int64_t extent : shape) s += (s.size() > 1 ? ", " : "") + std::to_string(extent);
  return s + "]";
}

void check_shape(const char* argument, const ConstTensorView& view, Shape shape) {
  if (!view.present()) invalid(argument, "a tensor of shape " + text(shape), "none");
  bool equal = view.rank == static_cast<int>(shape.size());
  for (int d = 0; equal && d < view.rank; ++d) equal = view.dim(d) == shape.begin()[d];
  if (!equal) invalid(argument, "shape " + text(shape), shape_text(view));
  if (view.elements() > 0 && view.data == nullptr) {
    invalid(argument, "memory for " + std::to_string(view.elements()) + " elements", "null");
  }
}

void check_dtype(const char* argument, const ConstTensorView& view,
                 std::initializer_list<DType> allowed) {
  std::string names;
  for (DType t : allowed) {
    if (view.dtype == t) return;
    if (names == name(t)) continue;  // float32 results of a float32 problem
    names += (names.empty() ? "" : " or ") + std::string(name(t));
  }
  invalid(argument, "dtype " + names, name(view.dtype));
}

void check_device(const Plan& plan, const char* argument, const ConstTensorView& view) {
  if (view.device != plan.problem().device) {
    invalid(argument, "memory on the problem's device", "memory on another device");
  }
}

/// Data and results with a head_dim: the last dimension is contiguous.
void check_data(const Plan& plan, const char* argument, const ConstTensorView& view, Shape shape) {
  check_shape(argument, view, shape);
  check_device(plan, argument, view);
  if (view.dim(3) > 1 && view.elements() > 0 && view.stride(3) != 1) {
    invalid(argument, "a contiguous last dimension (stride 1)",
            "stride " + std::to_string(view.stride(3)));
  }
}

void check_input(const Plan& plan, const char* argument, const ConstTensorView& view, Shape shape) {
  check_data(plan, argument, view, shape);
  check_dtype(argument, view, {plan.problem().dtype});
}

/// Results are rounded to the problem's dtype, or kept in float32; the float64 backend also
/// writes float64.
void check_result(const Plan& plan, const char* argument, const ConstTensorView& view,
                  Shape shape) {
  check_data(plan, argument, view, shape);
  const DType own = plan.problem().dtype;
  if (plan.backend().sum_dtype() == DType::kFloat64) {
    check_dtype(argument, view, {own, DType::kFloat32, DType::kFloat64});
  } else {
    check_dtype(argument, view, {own, DType::kFloat32});
  }
}

void check_rows(const Plan& plan, const char* argument, const ConstTensorView& view, Shape shape,
                bool required) {
  if (!view.present() && !required) return;
  check_shape(argument, view, shape);
  check_device(plan, argument, view);
  if (plan.backend().sum_dtype() == DType::kFloat64) {
    check_dtype(argument, view, {DType::kFloat32, DType::kFloat64});
  } else {
    check_dtype(argument, view, {DType::kFloat32});
  }
}

template <class Args>
void check_segments(const Plan& plan, const Args& args, std::int64_t queries, std::int64_t keys) {
  const Problem& p = plan.problem();
  const bool q = args.q_segment_ids.present();
  const bool k = args.kv_segment_ids.present();
  if (!plan.options().segment_ids) {
    if (q || k) {
      invalid(q ? "q_segment_ids" : "kv_segment_ids", "none, as Options::segment_ids is false",
              shape_text(q ? args.q_segment_ids : args.kv_segment_ids));
    }
    return;
  }
  if (!q && !k) {
    invalid("q_segment_ids", "segment ids, as Options::segment_ids is true", "none");
  }
  if (q != k && p.query_seq != p.key_seq) {
    invalid(q ? "kv_segment_ids" : "q_segment_ids",
            "ids for both sides, as query length " + std::to_string(p.query_seq) +
                " and key length " + std::to_string(p.key_seq) + " differ",
            "none");
  }
  const auto one = [&](const char* argument, const ConstTensorView& view, std::int64_t rows) {
    if (!view.present()) return;
    check_shape(argument, view, {p.batch, rows});
    check_device(plan, argument, view);
    check_dtype(argument, view, {DType::kInt32});
  };
  one("q_segment_ids", args.q_segment_ids, queries);
  one("kv_segment_ids", args.kv_segment_ids, keys);
}

void check_position_values(const Plan& plan, const char* argument, const ConstTensorView& view,
                           std::int64_t length) {
  for (std::int64_t i = 0; i < view.dim(0); ++i) {
    const std::int64_t at = i * view.stride(0);
    const std::int64_t x = load_position(view.dtype, view.data, at);
    if (plan.mask().bitmap != nullptr && !Range{0, length}.contains(x)) {
      invalid(argument, "positions in [0, " + std::to_string(length) + "), the mask's shape",
              std::to_string(x));
    }
    if (x == INT64_MAX) invalid(argument, "positions below 2^63 - 1", std::to_string(x));
  }
}

template <class Args>
void check_positions(const Plan& plan, const Args& args, std::int64_t queries, std::int64_t keys) {
  const auto one = [&](const char* argument, const ConstTensorView& view, std::int64_t rows,
                       std::int64_t length) {
    if (!plan.options().explicit_positions) {
      if (view.present()) {
        invalid(argument, "none, as Options::explicit_positions is false", shape_text(view));
      }
      return;
    }
    check_shape(argument, view, {rows});
    check_device(plan, argument, view);
    check_dtype(argument, view, {DType::kInt32, DType::kInt64});
    if (plan.problem().device == Device::kCpu) check_position_values(plan, argument, view, length);
  };
  one("q_positions", args.q_positions, queries, plan.problem().query_seq);
  one("kv_positions", args.kv_positions, keys, plan.problem().key_seq);
}

/// What both passes take.
template <class Args>
void check_common(const Plan& plan, const Args& args) {
  const Problem& p = plan.problem();
  const std::int64_t queries = plan.query_rows(plan.rank()).size();
  const std::int64_t keys = plan.key_rows(plan.rank()).size();
  check_input(plan, "query", args.query, {p.batch, queries, p.query_heads, p.head_dim});
  check_input(plan, "key", args.key, {p.batch, keys, p.kv_heads, p.head_dim});
  check_input(plan, "value", args.value, {p.batch, keys, p.kv_heads, p.value_dim});
  check_segments(plan, args, queries, keys);
  check_positions(plan, args, queries, keys);
  sink_form(args.sinks, p.query_heads);
  if (args.sinks.present()) check_device(plan, "softmax_aux", args.sinks);
}

}  // namespace

std::string shape_text(const ConstTensorView& view) {
  std::string s = "[";
  for (int d = 0; d < view.rank; ++d) s += (d > 0 ? ", " : "") + std::to_string(view.dim(d));
  return s + "]";
}

SinkForm sink_form(const ConstTensorView& sinks, std::int64_t heads) {
  if (!sinks.present()) return SinkForm::kNone;
  if (!is_float(sinks.dtype)) {
    invalid("softmax_aux", "a float dtype", name(sinks.dtype));
  }
  const bool one = sinks.rank == 1 && sinks.dim(0) > 0;
  const bool many = sinks.rank == 2 && sinks.dim(0) == heads && sinks.dim(1) > 0;
  if (!one && !many) {
    const std::string h = std::to_string(heads);
    invalid("softmax_aux", "shape [" + h + "], [S] or [" + h + ", S]", shape_text(sinks));
  }
  if (sinks.data == nullptr) invalid("softmax_aux", "memory", "null");
  if (many) return SinkForm::kPerHeadMany;
  return sinks.dim(0) == heads ? SinkForm::kPerHead : SinkForm::kShared;
}

void check(const Plan& plan, const ForwardArgs& args) {
  check_common(plan, args);
  const Problem& p = plan.problem();
  const std::int64_t queries = plan.query_rows(plan.rank()).size();
  check_result(plan, "out", args.out, {p.batch, queries, p.query_heads, p.value_dim});
  check_rows(plan, "lse", args.lse, {p.batch, p.query_heads, queries}, false);
}

void check(const Plan& plan, const BackwardArgs& args) {
  check_common(plan, args);
  const Problem& p = plan.problem();
  const std::int64_t queries = plan.query_rows(plan.rank()).size();
  const std::int64_t keys = plan.key_rows(plan.rank()).size();
  const Shape out = {p.batch, queries, p.query_heads, p.value_dim};
  check_result(plan, "out", args.out, out);
  check_rows(plan, "lse", args.lse, {p.batch, p.query_heads, queries}, true);
  check_input(plan, "dout", args.dout, out);
  check_rows(plan, "dlse", args.dlse, {p.batch, p.query_heads, queries}, false);
  check_result(plan, "dquery", args.dquery, {p.batch, queries, p.query_heads, p.head_dim});
  check_result(plan, "dkey", args.dkey, {p.batch, keys, p.kv_heads, p.head_dim});
  check_result(plan, "dvalue", args.dvalue, {p.batch, keys, p.kv_heads, p.value_dim});
  if (!args.sinks.present()) {
    if (args.dsinks.present()) {
      invalid("dsoftmax_aux", "none, as there is no softmax_aux", shape_text(args.dsinks));
    }
    return;
  }
  if (args.sinks.rank == 1) {
    check_shape("dsoftmax_aux", args.dsinks, {args.sinks.dim(0)});
  } else {
    check_shape("dsoftmax_aux", args.dsinks, {args.sinks.dim(0), args.sinks.dim(1)});
  }
  check_device(plan, "dsoftmax_aux", args.dsinks);
  check_dtype("dsoftmax_aux", args.dsinks, {DType::kFloat32, DType::kFloat64});
}

}  // namespace ringattn
