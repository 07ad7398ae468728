// SPDX-License-Identifier: Apache-2.0
#include "cpu/cpu.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "cpu/packed_block.h"
#include "dtype.h"

namespace ringattn {
namespace cpu {
namespace {

struct Candidate {
  const KernelTable* table;
  bool runs;
};

/// Best first.
std::vector<Candidate> candidates() {
  std::vector<Candidate> list;
#if defined(RINGATTN_HAVE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  // Intel's dot products of bfloat16 pairs (Cooper Lake to Emerald Rapids, 512 bits) take two
  // cycles where two multiply-adds of float32 take one: widened operands are twice as fast there.
  // On AMD (Zen 4 and later) dot products are twice as fast; where one bfloat16 value would not be
  // exact enough (weights of a forward with lse, dS for dQ) they take two.
  const Candidate pairs{&kernels_avx512_bf16, avx512 && __builtin_cpu_supports("avx512bf16")};
  const bool slow_pairs = __builtin_cpu_is("intel");
  if (!slow_pairs) list.push_back(pairs);
  list.push_back({&kernels_avx512, avx512});
  if (slow_pairs) list.push_back(pairs);
  list.push_back({&kernels_avx2, avx2});
#endif
  list.push_back({&kernels_baseline, true});
  return list;
}

/// Half of a word of two bfloat16 values.
float half(const float* words, std::int64_t word, std::int64_t which) {
  std::uint16_t halves[2];
  std::memcpy(halves, words + word, sizeof halves);
  return bf16_to_float(halves[which]);
}

template <bool kTransposed>
float weight(const CarefulProduct& p, std::int64_t i, std::int64_t j) {
  if (!p.pairs) return p.w[i * p.w_row + j];
  if (p.split) {
    const std::int64_t word = i * p.w_row + j / 2 * 2;
    return half(p.w, word, j % 2) + half(p.w, word + 1, j % 2);
  }
  return kTransposed ? half(p.w, i / 2 * 2 * p.w_row + j, i % 2)
                     : half(p.w, i * p.w_row + j / 2, j % 2);
}

/// Rows of a weights matrix taken as rows or as columns.
template <bool kTransposed>
void careful(const CarefulProduct& p) {
  for (std::int64_t i = 0; i < p.rows; ++i) {
    for (std::int64_t j = 0; j < p.keys; ++j) {
      if (p.bits != nullptr && (p.bits[i * p.words + j / 64] >> (j % 64) & 1) == 0) continue;
      const float w = weight<kTransposed>(p, i, j);
      const std::int64_t row = kTransposed ? i : j;
      float* out = p.out + (kTransposed ? j : i) * p.out_row;
      for (std::int64_t d = 0; d < p.columns; ++d) {
        out[d] +=
            w * (p.pairs ? half(p.x, row / 2 * p.x_row + d, row % 2) : p.x[row * p.x_row + d]);
      }
    }
  }
}

}  // namespace

const KernelTable* kernels(std::string_view option) {
  static const std::vector<Candidate> list = candidates();
  const std::size_t colon = option.find(':');
  for (const Candidate& c : list) {
    if (c.runs && (colon == std::string_view::npos || option.substr(colon + 1) == c.table->isa)) {
      return c.table;
    }
  }
  return nullptr;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) {
    if (c.runs) names.emplace_back(c.table->isa);
  }
  return names;
}

int threads(const Plan& plan) {
  const auto& executor = plan.options().executor;
  return executor != nullptr ? executor->threads() : default_executor()->threads();
}

Operands::Operands(const Plan& plan)
    : kernels(*cpu::kernels(plan.options().backend)),
      format(format_of(plan.problem().dtype)),
      pairs(format == Format::kBFloat16 && kernels.pair_rows != nullptr) {}

Format format_of(DType dtype) {
  return dtype == DType::kBFloat16  ? Format::kBFloat16
         : dtype == DType::kFloat16 ? Format::kFloat16
                                    : Format::kFloat32;
}

Range visible_keys(const TileBits& bits, Range rows) {
  Range keys;
  for (std::int64_t w = 0; w < bits.words; ++w) {
    std::uint64_t any = 0;
    for (std::int64_t i = rows.begin; i < rows.end; ++i) any |= bits.bits[i * bits.words + w];
    if (any == 0) continue;
    if (keys.empty()) keys.begin = w * 64;
    keys.end = w * 64 + 64 - std::countl_zero(any);
  }
  return keys;
}

void careful_product(const CarefulProduct& p) { careful<false>(p); }
void careful_product_transposed(const CarefulProduct& p) { careful<true>(p); }

}  // namespace cpu

std::optional<std::string> CpuBackend::why_not(const Problem& problem,
                                               const Options& options) const {
  constexpr std::int64_t kMaxHeadDim = 512;
  if (problem.device != Device::kCpu) return "it runs on the CPU only";
  if (problem.head_dim > kMaxHeadDim || problem.value_dim > kMaxHeadDim) {
    return "head_dim " + std::to_string(std::max(problem.head_dim, problem.value_dim)) +
           " is above " + std::to_string(kMaxHeadDim);
  }
  if (cpu::kernels(options.backend) == nullptr) {
    std::string have;
    for (const std::string& isa : cpu::instruction_sets()) have += (have.empty() ? "" : ", ") + isa;
    return options.backend + " is not an instruction set of this machine; there are " + have;
  }
  return std::nullopt;
}

static_assert(TileBits::kMaxRows <= cpu::kMostRows);

TileShape CpuBackend::tiles(const Problem&, const TileHint& hint, Pass) const {
  // 96 = 16 blocks of 6 rows or 8 of 12; a tile of 96 x 128 scores and its panels stay in L2.
  const auto clamp = [](std::int64_t asked, std::int64_t usual, std::int64_t most) {
    return asked > 0 ? std::min(asked, most) : usual;
  };
  return {clamp(hint.q_blocksize, 96, TileBits::kMaxRows),
          clamp(hint.kv_blocksize, 128, TileBits::kMaxKeys)};
}

std::vector<std::string> CpuBackend::instruction_sets() const { return cpu::instruction_sets(); }

std::size_t CpuBackend::workspace_bytes(const Plan& plan, Pass pass) const {
  return pass == Pass::kForward ? cpu::forward_workspace(plan) : cpu::backward_workspace(plan);
}

std::size_t CpuBackend::state_bytes(const Plan& plan, Pass pass) const {
  return pass == Pass::kForward ? cpu::forward_state(plan) : cpu::backward_state(plan);
}

std::size_t CpuBackend::shared_block_bytes(const Plan& plan, Pass pass) const {
  return cpu::PackedBlock(plan, pass).bytes();
}

void CpuBackend::share_block(const StepContext& step, Pass pass, std::span<std::byte> to) const {
  cpu::PackedBlock(step.plan, pass).pack(step, 0, to.data(), 0);
}

PassCounts CpuBackend::forward(const ForwardStep& step) const { return cpu::forward(step); }
PassCounts CpuBackend::backward(const BackwardStep& step) const { return cpu::backward(step); }

void CpuBackend::accumulate(std::byte* sum, const std::byte* part, std::int64_t n,
                            Executor& executor, Stream) const {
  constexpr std::int64_t kChunk = 1 << 16;
  const cpu::KernelTable& k = *cpu::kernels("cpu");
  auto* to = reinterpret_cast<float*>(sum);
  const auto* from = reinterpret_cast<const float*>(part);
  executor.run(ceil_div(n, kChunk), [&](std::int64_t c) {
    k.add(to + c * kChunk, from + c * kChunk, std::min(kChunk, n - c * kChunk));
  });
}

void CpuBackend::store(const std::byte* sum, TensorView out, Executor& executor, Stream) const {
  if (out.elements() == 0) return;
  constexpr std::int64_t kRows = 64;
  const cpu::KernelTable& k = *cpu::kernels("cpu");
  const auto* from = reinterpret_cast<const float*>(sum);
  const std::int64_t heads = out.dim(2);
  const std::int64_t dim = out.dim(3);
  const std::int64_t chunks = ceil_div(out.dim(1), kRows);
  executor.run(out.dim(0) * chunks, [&](std::int64_t task) {
    const std::int64_t b = task / chunks;
    const std::int64_t end = std::min((task % chunks + 1) * kRows, out.dim(1));
    const std::int64_t i = task % chunks * kRows;
    const float one = 1.0F;
    for (std::int64_t g = 0; g < heads; ++g) {
      k.narrow({cpu::format_of(out.dtype), from + ((b * out.dim(1) + i) * heads + g) * dim,
                heads * dim, end - i, dim, &one, 0, cpu::element(out, offset(out, b, i, g)),
                out.stride(1)});
    }
  });
}

}  // namespace ringattn
