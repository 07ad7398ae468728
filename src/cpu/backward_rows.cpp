// SPDX-License-Identifier: Apache-2.0
#include "cpu/backward_rows.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "dtype.h"
#include "merge.h"

namespace ringattn::cpu {
namespace {

const std::byte* rows_at(const ConstTensorView& v, std::int64_t b, std::int64_t i, std::int64_t h) {
  return static_cast<const std::byte*>(v.data) + offset(v, b, i, h) * size_of(v.dtype);
}

/// sum over d of out * dout of one row, in a fixed order; 0 and `zero` if out is 0 everywhere.
template <DType kOut, DType kDout>
double dot_of_row(const void* out, const void* dout, std::int64_t n, bool& zero) {
  constexpr std::int64_t kSums = 8;  // chains that do not wait for each other
  double sums[kSums] = {};
  double nonzero[kSums] = {};
  const auto add = [&](std::int64_t d, std::int64_t l) {
    const double x = load(kOut, out, d + l);
    nonzero[l] = std::max(nonzero[l], x != 0.0 ? 1.0 : 0.0);
    sums[l] += x * load(kDout, dout, d + l);
  };
  std::int64_t d = 0;
  for (; d + kSums <= n; d += kSums) {
    for (std::int64_t l = 0; l < kSums; ++l) add(d, l);
  }
  for (std::int64_t l = 0; l < n - d; ++l) add(d, l);
  zero = std::accumulate(std::begin(nonzero), std::end(nonzero), 0.0) == 0.0;
  return std::accumulate(std::begin(sums), std::end(sums), 0.0);
}

/// `out` may be kept in float32 where `dout` is not.
double dot_of_row(DType out_type, const void* out, DType dout_type, const void* dout,
                  std::int64_t n, bool& zero) {
  const auto with_out = [&]<DType kOut>() {
    switch (dout_type) {
      case DType::kBFloat16: return dot_of_row<kOut, DType::kBFloat16>(out, dout, n, zero);
      case DType::kFloat16: return dot_of_row<kOut, DType::kFloat16>(out, dout, n, zero);
      default: return dot_of_row<kOut, DType::kFloat32>(out, dout, n, zero);
    }
  };
  switch (out_type) {
    case DType::kBFloat16: return with_out.template operator()<DType::kBFloat16>();
    case DType::kFloat16: return with_out.template operator()<DType::kFloat16>();
    default: return with_out.template operator()<DType::kFloat32>();
  }
}

/// Rows that one task prepares or finishes.
constexpr std::int64_t kChunk = 128;

float lse_at(const BackwardStep& step, std::int64_t b, std::int64_t h, std::int64_t i) {
  return static_cast<const float*>(step.lse.data)[offset(step.lse, b, h, i)];
}

/// Fills lse and delta of rows of one head.
void prepare_rows(const BackwardStep& step, const BackwardPieces& w, std::int64_t bh, Range rows) {
  const Problem& p = step.plan.problem();
  const std::int64_t b = bh / p.query_heads;
  const std::int64_t h = bh % p.query_heads;
  const std::int64_t seq = step.query.dim(1);
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const float lse = lse_at(step, b, h, i);
    bool zero = true;
    double delta = dot_of_row(step.out.dtype, rows_at(step.out, b, i, h), step.dout.dtype,
                              rows_at(step.dout, b, i, h), p.value_dim, zero);
    // A row that saw nothing has out 0 and does not look at dout, which may be anything there.
    if (zero && step.sinks != nullptr && static_cast<float>(step.sinks[h]) == lse) delta = 0.0;
    if (step.dlse.present()) {
      delta -= static_cast<const float*>(step.dlse.data)[offset(step.dlse, b, h, i)];
    }
    w.lse[bh * seq + i] = backward_lse(lse) * std::numbers::log2e_v<float>;
    w.delta[bh * seq + i] = static_cast<float>(delta);
  }
}

/// One head's part of dsinks, over batch and rows in order.
double dsink_of(const BackwardStep& step, const BackwardPieces& w, std::int64_t h) {
  const Problem& p = step.plan.problem();
  const double sink = step.sinks[h];
  if (std::abs(sink) == kInfinity<double>) return 0.0;
  const std::int64_t seq = step.query.dim(1);
  double dsink = 0.0;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const float* delta = w.delta + (b * p.query_heads + h) * seq;
    for (std::int64_t i = 0; i < seq; ++i) {
      dsink -= std::exp(sink - lse_at(step, b, h, i)) * delta[i];
    }
  }
  return dsink;
}

/// Calls f(bh, rows) for every chunk of every head's rows.
template <class F>
void for_chunks(const BackwardStep& step, const F& f) {
  const std::int64_t seq = step.query.dim(1);
  const std::int64_t chunks = ceil_div(seq, kChunk);
  const Problem& p = step.plan.problem();
  step.executor.run(p.batch * p.query_heads * chunks, [&](std::int64_t n) {
    const std::int64_t begin = n % chunks * kChunk;
    f(n / chunks, Range{begin, std::min(begin + kChunk, seq)});
  });
}

/// Packs a tile of rows as tile `n`.
void pack_tile(const Operands& o, const PackedRows& to, std::int64_t n, Widen w) {
  w.dst = to.left + n * to.left_size;
  w.dst_row = to.left_row;
  to.finite[n] = o.left(w) ? 1 : 0;
  if (!o.pairs) return;
  w.dst = to.right + n * to.right_size;
  w.dst_row = to.right_row;
  o.right(w);
}

}  // namespace

void prepare(const BackwardStep& step, const BackwardPieces& w) {
  const std::int64_t seq = step.query.dim(1);
  const std::int64_t row = padded(step.plan.problem().head_dim);
  for_chunks(step, [&](std::int64_t bh, Range rows) {
    std::fill_n(w.dquery + (bh * seq + rows.begin) * row, (rows.end - rows.begin) * row, 0.0F);
    prepare_rows(step, w, bh, rows);
  });
  if (step.dsinks == nullptr) return;
  step.executor.run(step.plan.problem().query_heads, [&](std::int64_t h) {
    step.dsinks[h] = step.sinks == nullptr ? 0.0 : dsink_of(step, w, h);
  });
}

void pack_rows(const BackwardStep& step, const BackwardPieces& w, const Operands& o) {
  const Problem& p = step.plan.problem();
  const std::int64_t tiles = step.schedule.queries.count();
  step.executor.run(p.batch * p.query_heads * tiles, [&](std::int64_t n) {
    const std::int64_t b = n / tiles / p.query_heads;
    const std::int64_t h = n / tiles % p.query_heads;
    const Tile tile = step.schedule.queries[n % tiles];
    pack_tile(o, w.query, n,
              {false, o.format, rows_at(step.query, b, tile.row, h), step.query.stride(1),
               tile.rows, p.head_dim, nullptr, 0});
    pack_tile(o, w.dout, n,
              {false, o.format, rows_at(step.dout, b, tile.row, h), step.dout.stride(1), tile.rows,
               p.value_dim, nullptr, 0});
  });
}

void finish_queries(const BackwardStep& step, const BackwardPieces& w, const KernelTable& k) {
  const Problem& p = step.plan.problem();
  const std::int64_t seq = step.query.dim(1);
  const std::int64_t row = padded(p.head_dim);
  const float scale = step.plan.scale();
  for_chunks(step, [&](std::int64_t bh, Range rows) {
    const std::int64_t at = offset(step.dquery, bh / p.query_heads, rows.begin, bh % p.query_heads);
    k.narrow({format_of(step.dquery.dtype), w.dquery + (bh * seq + rows.begin) * row, row,
              rows.end - rows.begin, p.head_dim, &scale, 0, element(step.dquery, at),
              step.dquery.stride(1)});
  });
}

}  // namespace ringattn::cpu
