// SPDX-License-Identifier: Apache-2.0
#include "cpu/backward_rows.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "dtype.h"
#include "merge.h"

namespace ringattn::cpu {
namespace {

const std::byte* rows_at(const ConstTensorView& v, std::int64_t b, std::int64_t i, std::int64_t h) {
  return static_cast<const std::byte*>(v.data) + offset(v, b, i, h) * size_of(v.dtype);
}

/// Rows that one task prepares or finishes.
constexpr std::int64_t kChunk = 128;

float lse_at(const BackwardStep& step, std::int64_t b, std::int64_t h, std::int64_t i) {
  return static_cast<const float*>(step.lse.data)[offset(step.lse, b, h, i)];
}

/// Fills lse and delta of rows of one head.
void prepare_rows(const BackwardStep& step, const BackwardPieces& w, const KernelTable& k,
                  std::int64_t bh, Range rows) {
  const Problem& p = step.plan.problem();
  const std::int64_t b = bh / p.query_heads;
  const std::int64_t h = bh % p.query_heads;
  const std::int64_t seq = step.query.dim(1);
  double dots[kChunk];
  bool zeros[kChunk];
  k.dot_rows({format_of(step.out.dtype), rows_at(step.out, b, rows.begin, h), step.out.stride(1),
              format_of(step.dout.dtype), rows_at(step.dout, b, rows.begin, h), step.dout.stride(1),
              rows.size(), p.value_dim, dots, zeros});
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const float lse = lse_at(step, b, h, i);
    double delta = dots[i - rows.begin];
    // A row that saw nothing has out 0 and does not look at dout, which may be anything there.
    if (zeros[i - rows.begin] && step.sinks != nullptr && static_cast<float>(step.sinks[h]) == lse)
      delta = 0.0;
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

void prepare(const BackwardStep& step, const BackwardPieces& w, const KernelTable& k) {
  const std::int64_t seq = step.query.dim(1);
  const std::int64_t row = padded(step.plan.problem().head_dim);
  for_chunks(step, [&](std::int64_t bh, Range rows) {
    std::fill_n(w.dquery + (bh * seq + rows.begin) * row, (rows.end - rows.begin) * row, 0.0F);
    prepare_rows(step, w, k, bh, rows);
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
