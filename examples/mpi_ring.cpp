// SPDX-License-Identifier: Apache-2.0
// Attention over the processes of an MPI program: every process makes its own rows of one long
// sequence, and none ever sees the whole. Start it with `mpirun -n 4 example_mpi_ring`. What a
// program does when a process is lost is in fail(), below, and in docs/mpi.md.
#include <mpi.h>
#include <ringattn/attention.h>
#include <ringattn/mpi.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

namespace {

using namespace ringattn;  // NOLINT(google-build-using-namespace): an example reads better so

constexpr std::int64_t kSeq = 1000, kHeads = 4, kKvHeads = 2, kDim = 32;

/// This rank's rows [1, rows, heads, kDim] of a tensor that is a function of the position.
struct Rows {
  Rows(const Positions& positions, std::int64_t heads_in, double shift)
      : rows(positions.size()),
        heads(heads_in),
        data(static_cast<std::size_t>(rows * heads * kDim)) {
    std::size_t i = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t k = 0; k < heads * kDim; ++k) {
        data[i++] = static_cast<float>(std::sin(0.01 * static_cast<double>(positions(row)) +
                                                0.7 * static_cast<double>(k) + shift));
      }
    }
  }
  TensorView view() { return TensorView(data.data(), DType::kFloat32, {1, rows, heads, kDim}); }

  std::int64_t rows, heads;
  std::vector<float> data;
};

void attend() {
  const auto ring = mpi_communicator(MPI_COMM_WORLD, {.timeout = std::chrono::seconds(60)});
  const Options options{.mask = Mask::causal(), .layout = Layout::kZigzag};
  const Positions mine = positions(options.layout, kSeq, ring->size(), ring->rank());
  Rows q(mine, kHeads, 0.0), k(mine, kKvHeads, 1.0), v(mine, kKvHeads, 2.0),
      dout(mine, kHeads, 3.0);
  Rows out = q, dq = q, dk = k, dv = v;
  std::vector<float> lse(static_cast<std::size_t>(kHeads * mine.size()));
  const TensorView lse_view(lse.data(), DType::kFloat32, {1, kHeads, mine.size()});

  RingAttention attention(*ring,
                          {.query_seq = kSeq,
                           .key_seq = kSeq,
                           .query_heads = kHeads,
                           .kv_heads = kKvHeads,
                           .head_dim = kDim},
                          options);
  attention.forward(
      {.query = q.view(), .key = k.view(), .value = v.view(), .out = out.view(), .lse = lse_view});
  attention.backward({.query = q.view(),
                      .key = k.view(),
                      .value = v.view(),
                      .out = out.view(),
                      .lse = lse_view,
                      .dout = dout.view(),
                      .dquery = dq.view(),
                      .dkey = dk.view(),
                      .dvalue = dv.view()});

  // ringattn's messages never meet those of the program.
  double own[2] = {0.0, 0.0};
  for (const float x : out.data) own[0] += std::abs(static_cast<double>(x));
  for (const float x : dk.data) own[1] += std::abs(static_cast<double>(x));
  double sum[2] = {0.0, 0.0};
  MPI_Reduce(own, sum, 2, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
  if (ring->rank() == 0) {
    std::printf("%d ranks: sum |out| %.4f, sum |dkey| %.4f\n", ring->size(), sum[0], sum[1]);
  }
}

/// The error names the rank that was lost. MPI_Finalize could wait for it for ever, so the job
/// ends here.
int fail(const std::exception& error) {
  std::fprintf(stderr, "mpi_ring: %s\n", error.what());
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, 4);
  return 4;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);  // MPI_THREAD_SINGLE is enough
  try {
    attend();
  } catch (const std::exception& error) {
    return fail(error);
  }
  MPI_Finalize();
}
