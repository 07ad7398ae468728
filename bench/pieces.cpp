// SPDX-License-Identifier: Apache-2.0
// The pieces around the kernels: cutting shards, finding tiles, compiling masks. They
// should cost nothing beside attention; this shows what they cost.
#include <benchmark/benchmark.h>

#include "bitmap.h"
#include "ringattn/layout.h"
#include "schedule.h"
#include "support/data.h"

namespace ringattn {
namespace {

constexpr std::int64_t kTile = 64;

/// One query tile's question to the mask, which kernels ask for every tile.
void visit_one_tile(benchmark::State& state) {
  const IntervalMask mask{4096, 0, 0};
  const Tiling keys{positions(Layout::kZigzag, state.range(0), 4, 1), kTile, nullptr};
  std::int64_t q = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(visit(mask, {q, q + kTile}, keys));
    q = (q + kTile) % state.range(0);
  }
}
BENCHMARK(visit_one_tile)->Arg(1 << 12)->Arg(1 << 22);

/// Cutting one of four shards out of a global tensor [1, S, 8, 128] in float32.
void shard_zigzag(benchmark::State& state) {
  const std::int64_t rows = positions(Layout::kZigzag, state.range(0), 4, 1).size();
  const HostTensor global(DType::kFloat32, {1, state.range(0), 8, 128});
  HostTensor local(DType::kFloat32, {1, rows, 8, 128});
  for (auto _ : state) {
    shard(global.view(), 1, Layout::kZigzag, 4, 1, local.view());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(local.size_bytes()));
}
BENCHMARK(shard_zigzag)->Arg(1 << 12);

/// A dense mask compiled to blocks.
void compile_dense_mask(benchmark::State& state) {
  const std::string text = "sq" + std::to_string(state.range(0)) + "_d8_mask";
  const support::Case c = support::parse_case(text);
  const Options options = support::make_options(c, support::make_structure(c));
  for (auto _ : state) {
    benchmark::DoNotOptimize(compile(options.mask, 1, c.query_seq, c.key_seq));
  }
}
BENCHMARK(compile_dense_mask)->Arg(1024);

}  // namespace
}  // namespace ringattn
