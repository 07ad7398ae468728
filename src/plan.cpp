// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "backend.h"
#include "counts.h"
#include "workspace.h"

namespace ringattn {
namespace {

[[noreturn]] void invalid(const std::string& argument, const std::string& expected,
                          const std::string& got) {
  throw Error(ErrorCode::kInvalidArgument, argument + ": expected " + expected + ", got " + got);
}

void require_at_least(const char* argument, std::int64_t least, std::int64_t value) {
  if (value < least) invalid(argument, ">= " + std::to_string(least), std::to_string(value));
}

/// Every tensor of the problem must have fewer than 2^60 elements, so that no product of sizes
/// and element widths overflows later.
void require_addressable(const char* tensor, std::initializer_list<std::int64_t> shape) {
  std::int64_t elements = 1;
  for (std::int64_t extent : shape) {
    if (__builtin_mul_overflow(elements, std::max<std::int64_t>(extent, 1), &elements) ||
        elements >= std::int64_t{1} << 60) {
      invalid(tensor, "fewer than 2^60 elements", "more");
    }
  }
}

void check_sizes(const Problem& p) {
  require_at_least("batch", 0, p.batch);
  require_at_least("query length", 0, p.query_seq);
  require_at_least("key length", 0, p.key_seq);
  require_at_least("query heads", 1, p.query_heads);
  require_at_least("kv heads", 1, p.kv_heads);
  require_at_least("head_dim", 1, p.head_dim);
  require_at_least("value head_dim", 1, p.value_dim);
  if (p.query_heads % p.kv_heads != 0) {
    invalid("query heads", "a multiple of the kv heads (" + std::to_string(p.kv_heads) + ")",
            std::to_string(p.query_heads));
  }
  require_addressable("query", {p.batch, p.query_seq, p.query_heads, p.head_dim});
  require_addressable("key", {p.batch, p.key_seq, p.kv_heads, p.head_dim});
  require_addressable("value", {p.batch, p.key_seq, p.kv_heads, p.value_dim});
  require_addressable("out", {p.batch, p.query_seq, p.query_heads, p.value_dim});
  const DType t = p.dtype;
  if (t == DType::kFloat64) {
    throw Error(ErrorCode::kUnsupported, "query: dtype f64 is not supported; use f32, bf16 or f16");
  }
  if (t != DType::kFloat32 && t != DType::kBFloat16 && t != DType::kFloat16) {
    invalid("query", "dtype f32, bf16 or f16", name(t));
  }
}

void check_options(const Options& o) {
  if (o.softmax_scale && !std::isfinite(*o.softmax_scale)) {
    invalid("softmax_scale", "a finite number", std::to_string(*o.softmax_scale));
  }
  if (o.logits_soft_cap && !(std::isfinite(*o.logits_soft_cap) && *o.logits_soft_cap > 0.0F)) {
    invalid("logits_soft_cap", "a finite number > 0", std::to_string(*o.logits_soft_cap));
  }
  require_at_least("fwd_params.q_blocksize", 0, o.forward_tiles.q_blocksize);
  require_at_least("fwd_params.kv_blocksize", 0, o.forward_tiles.kv_blocksize);
  require_at_least("bwd_params.q_blocksize", 0, o.backward_tiles.q_blocksize);
  require_at_least("bwd_params.kv_blocksize", 0, o.backward_tiles.kv_blocksize);
}

void check_ring(int rank, int world) {
  require_at_least("ring size", 1, world);
  if (rank < 0 || rank >= world) {
    invalid("rank", "in [0, " + std::to_string(world) + ")", std::to_string(rank));
  }
}

constexpr std::size_t align(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

std::size_t bytes_of(std::initializer_list<std::int64_t> shape) {
  std::int64_t n = 1;
  for (std::int64_t extent : shape) n *= extent;
  return static_cast<std::size_t>(n);
}

}  // namespace

Plan::Plan(const Problem& problem, const Options& options, int rank, int world, bool hands_over)
    : problem_(problem), options_(options), rank_(rank), world_(world), hands_over_(hands_over) {
  check();
  mask_ = compile(options_.mask, problem_.query_heads, problem_.query_seq, problem_.key_seq);
  choose();
}

Plan::Plan(const Problem& problem, const Options& options, CompiledMask mask, int rank, int world,
           bool hands_over)
    : problem_(problem),
      options_(options),
      rank_(rank),
      world_(world),
      hands_over_(hands_over),
      mask_(std::move(mask)) {
  check();
  choose();
}

void Plan::check() {
  if (problem_.value_dim == 0) problem_.value_dim = problem_.head_dim;
  check_ring(rank_, world_);
  check_sizes(problem_);
  check_options(options_);
}

void Plan::choose() {
  scale_ = options_.softmax_scale.value_or(
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(problem_.head_dim))));
  const ChosenBackend chosen = choose_backend(problem_, options_);
  backend_ = chosen.backend;
  reason_ = chosen.reason;
  forward_ = backend_->tiles(problem_, options_.forward_tiles, Pass::kForward);
  backward_ = backend_->tiles(problem_, options_.backward_tiles, Pass::kBackward);
}

Positions Plan::query_rows(int rank) const {
  return positions(options_.layout, problem_.query_seq, world_, rank);
}

Positions Plan::key_rows(int rank) const {
  return positions(options_.layout, problem_.key_seq, world_, rank);
}

std::int64_t Plan::max_key_rows() const {
  std::int64_t rows = 0;
  for (int r = 0; r < world_; ++r) rows = std::max(rows, key_rows(r).size());
  return rows;
}

PairSchedule Plan::pair_schedule(Pass pass, int query_rank, int key_rank) const {
  PairSchedule s;
  s.mask = mask_.interval;
  if (mask_.bitmap != nullptr) s.bitmap = mask_.bitmap->view();
  s.queries = {query_rows(query_rank), tiles(pass).queries, nullptr};
  s.keys = {key_rows(key_rank), tiles(pass).keys, nullptr};
  return s;
}

BlockLayout Plan::block_layout(int owner) const {
  const std::int64_t rows = key_rows(owner).size();
  const std::int64_t width = size_of(problem_.dtype);
  BlockLayout block;
  block.value =
      align(bytes_of({problem_.batch, rows, problem_.kv_heads, problem_.head_dim, width}));
  block.ids = block.value +
              align(bytes_of({problem_.batch, rows, problem_.kv_heads, problem_.value_dim, width}));
  block.positions =
      block.ids + (options_.segment_ids ? align(bytes_of({problem_.batch, rows, 4})) : 0);
  block.bytes = block.positions + (options_.explicit_positions ? align(bytes_of({rows, 8})) : 0);
  return block;
}

std::size_t Plan::value_sums_offset(int owner) const {
  const std::int64_t width = size_of(backend_->sum_dtype());
  return align(bytes_of(
      {problem_.batch, key_rows(owner).size(), problem_.kv_heads, problem_.head_dim, width}));
}

std::size_t Plan::sums_bytes(int owner) const {
  const std::int64_t width = size_of(backend_->sum_dtype());
  return value_sums_offset(owner) + align(bytes_of({problem_.batch, key_rows(owner).size(),
                                                    problem_.kv_heads, problem_.value_dim, width}));
}

std::size_t Plan::workspace_bytes(Pass pass) const {
  Carver measure;
  carve_workspace(*this, pass, measure);
  return measure.used();
}

std::int64_t Plan::all_tiles(Pass pass, int rank) const {
  std::int64_t keys = 0;
  for (int r = 0; r < world_; ++r) keys += Tiling{key_rows(r), tiles(pass).keys, nullptr}.count();
  const std::int64_t queries = Tiling{query_rows(rank), tiles(pass).queries, nullptr}.count();
  return problem_.batch * problem_.query_heads * queries * keys;
}

}  // namespace ringattn
