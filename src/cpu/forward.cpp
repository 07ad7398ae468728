// SPDX-License-Identifier: Apache-2.0
// The forward pass on the CPU (FlashAttention-2, Dao 2023, arXiv 2307.08691, algorithm 1): keys
// and values are packed once per step and shared by all query tiles and heads of a group; each
// task owns one (batch row, head, query tile), so no result depends on how tasks are spread.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "counts.h"
#include "cpu/cpu.h"
#include "cpu/tickets.h"
#include "merge.h"
#include "workspace.h"

namespace ringattn::cpu {
namespace {

/// The pieces of StepContext::state and StepContext::workspace.
struct Pieces {
  float* acc = nullptr;  // state, [B, H, Sq, padded Dv]
  float* max = nullptr;  // state, [B, H, Sq]
  float* sum = nullptr;  // state, [B, H, Sq]
  float* keys;           // [B, G, key tiles] of transposed panels
  float* values;         // [B, G, key tiles] of panels
  std::uint8_t* finite;  // [B, G, key tiles]: all values are finite
  std::byte* scratch;
  std::size_t scratch_bytes;
};

/// What one thread works in.
struct Scratch {
  float* query;  // panels [M, D]
  float* s;      // [M, stride]
  float* acc;    // [M, padded Dv]
  float* max;    // [M]
  float* sum;
  float* factor;
};

// A row of scores ends 16 floats late, so that rows do not fall into the same cache sets.
std::int64_t score_stride(const TileShape& tile) { return padded(tile.keys) + kPanel; }

std::int64_t key_tiles(const Plan& plan) {
  std::int64_t most = 0;
  for (int r = 0; r < plan.world(); ++r) {
    most =
        std::max(most, Tiling{plan.key_rows(r), plan.tiles(Pass::kForward).keys, nullptr}.count());
  }
  return most;
}

std::int64_t key_panel(const Plan& plan) {
  return plan.problem().head_dim * padded(plan.tiles(Pass::kForward).keys);
}

std::int64_t value_panel(const Plan& plan) {
  return padded(plan.problem().value_dim) * plan.tiles(Pass::kForward).keys;
}

Scratch carve_scratch(const Plan& plan, Carver& carver) {
  const TileShape tile = plan.tiles(Pass::kForward);
  const Problem& p = plan.problem();
  Scratch s{};
  s.query = carver.take_array<float>(tile.queries * padded(p.head_dim));
  s.s = carver.take_array<float>(tile.queries * score_stride(tile));
  s.acc = carver.take_array<float>(tile.queries * padded(p.value_dim));
  s.max = carver.take_array<float>(tile.queries);
  s.sum = carver.take_array<float>(tile.queries);
  s.factor = carver.take_array<float>(tile.queries);
  return s;
}

/// Rows of the state; a ring of one has a single step and needs none.
std::int64_t state_rows(const Plan& plan) {
  const Problem& p = plan.problem();
  return plan.world() == 1 ? 0 : p.batch * p.query_heads * plan.query_rows(plan.rank()).size();
}

Pieces carve(const Plan& plan, Carver& carver) {
  const Problem& p = plan.problem();
  const std::int64_t panels = p.batch * p.kv_heads * key_tiles(plan);
  Pieces w{};
  w.keys = carver.take_array<float>(panels * key_panel(plan));
  w.values = carver.take_array<float>(panels * value_panel(plan));
  w.finite = carver.take_array<std::uint8_t>(panels);
  Carver one;
  carve_scratch(plan, one);
  w.scratch_bytes = one.used();
  w.scratch = carver.take(w.scratch_bytes * static_cast<std::size_t>(threads(plan))).data();
  return w;
}

/// Packs the step's keys and values.
void pack(const ForwardStep& step, const Pieces& w, const KernelTable& k) {
  const Problem& p = step.plan.problem();
  const Tiling& tiles = step.schedule.keys;
  const std::int64_t count = tiles.count();
  const Format from = format(p.dtype);
  step.executor.run(p.batch * p.kv_heads * count, [&](std::int64_t n) {
    const Tile tile = tiles[n % count];
    const std::int64_t b = n / count / p.kv_heads;
    const std::int64_t g = n / count % p.kv_heads;
    const std::int64_t size = p.dtype == DType::kFloat32 ? 4 : 2;
    const auto at = [&](const ConstTensorView& v) {
      return static_cast<const std::byte*>(v.data) +
             (b * v.stride(0) + tile.row * v.stride(1) + g * v.stride(2)) * size;
    };
    k.widen_transposed({from, at(step.key), step.key.stride(1), tile.rows, p.head_dim,
                        w.keys + n * key_panel(step.plan), p.head_dim});
    w.finite[n] = k.widen({from, at(step.value), step.value.stride(1), tile.rows, p.value_dim,
                           w.values + n * value_panel(step.plan), tiles.size})
                      ? 1
                      : 0;
  });
}

/// One (batch row, head, query tile).
class Task {
 public:
  Task(const ForwardStep& step, const Pieces& pieces, const Scratch& scratch,
       const KernelTable& kernels, std::int64_t bh, std::int64_t i)
      : step_(step),
        p_(step.plan.problem()),
        w_(pieces),
        x_(scratch),
        k_(kernels),
        b_(bh / p_.query_heads),
        h_(bh % p_.query_heads),
        g_(h_ / (p_.query_heads / p_.kv_heads)),
        tile_(step.schedule.queries[i]),
        i_(i),
        width_(padded(p_.value_dim)),
        row_(bh * step.schedule.queries.positions.size() + tile_.row) {}

  void run(PassCounts& counts) {
    load_query();
    load_state();
    const TileRanges ranges = visit(step_.schedule.mask, tile_.span, step_.schedule.keys);
    for (const Range& tiles : ranges.visited) {
      for (std::int64_t j = tiles.begin; j < tiles.end; ++j) attend(j, counts);
    }
    if (step_.last) {
      finish_rows();
    } else {
      store_state();
    }
  }

 private:
  void load_query() {
    const std::int64_t size = p_.dtype == DType::kFloat32 ? 4 : 2;
    const ConstTensorView& q = step_.query;
    const auto* src = static_cast<const std::byte*>(q.data) +
                      (b_ * q.stride(0) + tile_.row * q.stride(1) + h_ * q.stride(2)) * size;
    k_.widen({format(p_.dtype), src, q.stride(1), tile_.rows, p_.head_dim, x_.query, tile_.rows});
  }

  void load_state() {
    if (step_.first) {
      std::fill_n(x_.acc, tile_.rows * width_, 0.0F);
      std::fill_n(x_.max, tile_.rows, -kInfinity<float>);
      std::fill_n(x_.sum, tile_.rows, 0.0F);
    } else {
      std::copy_n(w_.acc + row_ * width_, tile_.rows * width_, x_.acc);
      std::copy_n(w_.max + row_, tile_.rows, x_.max);
      std::copy_n(w_.sum + row_, tile_.rows, x_.sum);
    }
  }

  void store_state() {
    std::copy_n(x_.acc, tile_.rows * width_, w_.acc + row_ * width_);
    std::copy_n(x_.max, tile_.rows, w_.max + row_);
    std::copy_n(x_.sum, tile_.rows, w_.sum + row_);
  }

  void attend(std::int64_t j, PassCounts& counts) {
    TileBits bits;
    const TileKind kind = step_.schedule.exact_kind(b_, h_, i_, j, bits);
    if (kind == TileKind::kSkip) return;
    const Tile keys = step_.schedule.keys[j];
    const bool masked = kind == TileKind::kMasked;
    counts.tiles.visited += 1;
    counts.tiles.full += masked ? 0 : 1;
    counts.pairs += masked ? bits.pairs : tile_.rows * keys.rows;

    const TileShape shape = step_.plan.tiles(Pass::kForward);
    const std::int64_t stride = score_stride(shape);
    const std::int64_t n = (b_ * p_.kv_heads + g_) * step_.schedule.keys.count() + j;
    k_.product({x_.query, kPanel, 1, tile_.rows * kPanel, w_.keys + n * key_panel(step_.plan),
                p_.head_dim * kPanel, x_.s, stride, tile_.rows, padded(keys.rows), p_.head_dim,
                false});
    const Scoring scoring{step_.plan.scale(), step_.plan.soft_cap()};
    k_.softmax({x_.s, stride, tile_.rows, keys.rows, masked ? bits.bits : nullptr, bits.words,
                scoring, x_.max, x_.sum, x_.factor});
    k_.scale_rows(x_.acc, width_, tile_.rows, width_, x_.factor);
    const float* values = w_.values + n * value_panel(step_.plan);
    if (masked && w_.finite[n] == 0) {
      careful_product({x_.s, stride, bits, tile_.rows, keys.rows, values, shape.keys, p_.value_dim,
                       x_.acc, width_});
    } else {
      k_.product({x_.s, stride, 1, kPanel, values, shape.keys * kPanel, x_.acc, width_, tile_.rows,
                  width_, keys.rows, true});
    }
  }

  void finish_rows() {
    constexpr float kLn2 = std::numbers::ln2_v<float>;
    const float sink =
        step_.sinks == nullptr ? -kInfinity<float> : static_cast<float>(step_.sinks[h_]);
    for (std::int64_t r = 0; r < tile_.rows; ++r) {
      const auto result = finish(x_.max[r] * kLn2, x_.sum[r], sink);
      float* acc = x_.acc + r * width_;
      if (result.zero) std::fill_n(acc, p_.value_dim, 0.0F);
      const std::int64_t row = tile_.row + r;
      narrow(acc, p_.value_dim, result.zero ? 1.0F : result.factor, step_.out,
             b_ * step_.out.stride(0) + row * step_.out.stride(1) + h_ * step_.out.stride(2));
      if (step_.lse.present()) {
        const ptrdiff_t at =
            b_ * step_.lse.stride(0) + h_ * step_.lse.stride(1) + row * step_.lse.stride(2);
        static_cast<float*>(step_.lse.data)[at] = result.lse;
      }
    }
  }

  const ForwardStep& step_;
  const Problem& p_;
  const Pieces& w_;
  Scratch x_;
  const KernelTable& k_;
  std::int64_t b_, h_, g_;
  Tile tile_;
  std::int64_t i_, width_, row_;
};

}  // namespace

std::size_t forward_workspace(const Plan& plan) {
  Carver measure;
  carve(plan, measure);
  return measure.used();
}

std::size_t forward_state(const Plan& plan) {
  return static_cast<std::size_t>(state_rows(plan) * (padded(plan.problem().value_dim) + 2)) *
         sizeof(float);
}

PassCounts forward(const ForwardStep& step) {
  const Problem& p = step.plan.problem();
  const KernelTable& k = *kernels(step.plan.options().backend);
  Carver carver(step.workspace);
  Pieces w = carve(step.plan, carver);
  if (!(step.first && step.last)) {
    const std::int64_t rows = state_rows(step.plan);
    w.acc = reinterpret_cast<float*>(step.state.data());
    w.max = w.acc + rows * padded(p.value_dim);
    w.sum = w.max + rows;
  }
  pack(step, w, k);
  const std::int64_t tiles = step.schedule.queries.count();
  const std::int64_t planes = p.batch * p.query_heads;
  PassCounts counts =
      run_tickets(step.executor, planes * tiles,
                  [&](std::int64_t worker, std::int64_t ticket, PassCounts& own) {
                    Carver scratch({w.scratch + static_cast<std::size_t>(worker) * w.scratch_bytes,
                                    w.scratch_bytes});
                    // Late query tiles first: under a causal mask they are the longest.
                    Task(step, w, carve_scratch(step.plan, scratch), k, ticket % planes,
                         tiles - 1 - ticket / planes)
                        .run(own);
                  });
  counts.flops = flops(p, Pass::kForward, counts.pairs);
  return counts;
}

}  // namespace ringattn::cpu
