// SPDX-License-Identifier: Apache-2.0
// Scenarios in which nothing is lost: results, chunks, order, traffic beside, refusals.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>

#include "faulty.h"
#include "handshake.h"
#include "plan.h"
#include "ringattn/mpi.h"
#include "support/conformance.h"
#include "support/data.h"
#include "support/rank_job.h"
#include "worker.h"

namespace ringattn::testing {
namespace {

using std::chrono::milliseconds;

MpiOptions options(std::size_t largest = std::size_t{64} << 20) {
  MpiOptions o;
  o.timeout = milliseconds(60000);
  o.largest_message = largest;
  return o;
}

/// The case over `ring` and over threads; what differs, or "".
std::string compare_with_threads(Communicator& ring, support::Case c) {
  c.ring = ring.size();
  const support::CaseData data = support::make_data(c);
  const Problem problem = support::make_problem(c);
  Options how = support::make_options(c, data);
  how.executor = make_thread_pool(1 + ring.rank() % 2);
  support::RingSettings settings;
  settings.backward = c.backward;
  settings.guard = support::Guard::kOdd;
  Faulty watched(ring);  // loses nobody
  auto job = support::RankJob::of_global(watched, problem, how, data.inputs(), settings);
  job.forward();
  if (c.backward) job.backward();
  const support::RingResult got = job.result();
  settings.ring = c.ring;
  const support::RingResult expected = support::run_on_ring(problem, how, data.inputs(), settings);
  std::string different;
  if (ring.rank() == 0) different = support::different_bits(got, expected);  // has all rows
  if (different.empty() && got.forward != expected.forward) different = "forward counts";
  if (different.empty() && got.backward != expected.backward) different = "backward counts";
  if (watched.strangers()) different = "another thread called progress()";
  return different;
}

int report(const std::string& what, const std::string& problem) {
  if (problem.empty()) return 0;
  std::fprintf(stderr, "FAILED %s: %s\n", what.c_str(), problem.c_str());
  return 1;
}

/// Byte i of a message: anything that a stale or shifted one has not.
std::byte pattern(int rank, std::int64_t hop, std::size_t i) {
  return static_cast<std::byte>(static_cast<std::size_t>(rank) * 31 +
                                static_cast<std::size_t>(hop) * 7 + i * 13 + (i >> 8));
}

}  // namespace

int same_bits(const Words& cases) {
  // Small messages, so that blocks go in several.
  const auto ring = mpi_communicator(MPI_COMM_WORLD, options(999));
  int failed = 0;
  for (const std::string& text : cases) {
    failed += report(text, compare_with_threads(*ring, support::parse_case(text)));
  }
  return failed == 0 ? 0 : 1;
}

int storm(const Words& words) {
  std::mt19937 common(static_cast<unsigned>(std::stoul(words.at(0))));
  const int rounds = std::stoi(words.at(1));
  for (int round = 0; round < rounds; ++round) {
    // A new ring now and then; its own random delays on every rank.
    const auto ring = mpi_communicator(MPI_COMM_WORLD, options(1 + common() % 300));
    const int n = ring->size();
    const int me = ring->rank();
    std::mt19937 own(static_cast<unsigned>(common()) + static_cast<unsigned>(me));
    const auto dawdle = [&] {
      if (own() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own() % 100));
    };
    for (int repeat = 0; repeat < 100; ++repeat) {
      std::vector<std::byte> out[2];
      std::vector<std::byte> in[2];
      Communicator::Ticket open[2] = {-1, -1};
      for (int hop = 0; hop < 5; ++hop) {
        const std::size_t bytes = 1 + common() % 1500;
        const int offset = n == 1 ? 0 : static_cast<int>(common() % (2 * n - 1)) - (n - 1);
        const int from = ((me - offset) % n + n) % n;
        const auto slot = static_cast<std::size_t>(hop % 2);
        if (open[slot] >= 0) ring->finish(open[slot], {});
        out[slot].resize(bytes);
        in[slot].assign(bytes, std::byte{0});
        for (std::size_t i = 0; i < bytes; ++i) out[slot][i] = pattern(me, hop, i);
        dawdle();
        open[slot] = ring->shift(out[slot], in[slot], bytes, offset, {}, {hop, me, from});
        dawdle();
        ring->progress();
        const auto came = ring->wait(open[slot], {});
        for (std::size_t i = 0; i < bytes; ++i) {
          if (came[i] == pattern(from, hop, i)) continue;
          std::fprintf(stderr, "round %d hop %d byte %zu is wrong\n", round, hop, i);
          return 1;
        }
      }
      for (const auto ticket : open) ring->finish(ticket, {});
    }
  }
  return 0;
}

int beside(const Words& words) {
  int rank = 0;
  int size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  // The application waits for anything from anybody, and sends to itself and its neighbour.
  int got = -1;
  MPI_Request any = MPI_REQUEST_NULL;
  MPI_Irecv(&got, 1, MPI_INT, MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &any);
  // Data x ring parallel: pairs of ranks are rings, and so are even and odd ranks; all at once.
  MPI_Comm parent[2];
  MPI_Comm_split(MPI_COMM_WORLD, rank / 2, -rank, &parent[0]);  // in reverse order
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &parent[1]);
  std::vector<std::unique_ptr<Communicator>> rings;
  for (MPI_Comm& comm : parent) {
    rings.push_back(mpi_communicator(comm, options()));
    MPI_Comm_free(&comm);
  }
  int failed = 0;
  for (const std::string& text : words) {
    for (const auto& ring : rings) {
      failed += report(text, compare_with_threads(*ring, support::parse_case(text)));
    }
  }
  MPI_Send(&rank, 1, MPI_INT, (rank + 1) % size, 5, MPI_COMM_WORLD);
  MPI_Wait(&any, MPI_STATUS_IGNORE);
  if (got != (rank + size - 1) % size) failed += report("the application's own message", "lost");
  return failed == 0 ? 0 : 1;
}

int huge(const Words& words) {
  const std::size_t bytes = std::stoull(words.at(0));
  MpiOptions o = options();
  if (words.size() > 1) o.largest_message = std::stoull(words.at(1));
  const auto ring = mpi_communicator(MPI_COMM_WORLD, o);
  std::vector<std::byte> out(ring->rank() == 0 ? bytes : 0);
  std::vector<std::byte> in(ring->rank() == 1 ? bytes : 0);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = pattern(0, 1, i);
  const auto ticket = ring->shift(out, in, in.size(), 1, {}, {1, 0, 0});
  const auto came = ring->wait(ticket, {});
  for (std::size_t i = 0; i < came.size(); ++i) {
    if (came[i] != pattern(0, 1, i)) return report("byte " + std::to_string(i), "wrong");
  }
  ring->finish(ticket, {});
  if (ring->rank() == 1) std::printf("%zu bytes came\n", came.size());
  return 0;
}

int stale(const Words& words) {
  const auto ring = mpi_communicator(MPI_COMM_WORLD, options());
  Cargo cargo{1, 0, 0};
  if (ring->rank() == 0) (words.at(0) == "hop" ? cargo.hop : cargo.sent) = 7;
  const std::vector<std::byte> out(ring->rank() == 0 ? 8 : 0);
  std::vector<std::byte> in(ring->rank() == 1 ? 8 : 0);
  const auto ticket = ring->shift(out, in, in.size(), 1, {}, cargo);
  try {
    ring->wait(ticket, {});
    if (ring->rank() == 1) std::printf("no error\n");
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kCommunication) std::printf("%s\n", error.what());
  }
  ring->finish(ticket, {});
  return 0;
}

int mismatch(const Words& words) {
  const auto ring = mpi_communicator(MPI_COMM_WORLD, options());
  const std::string& what = words.at(0);
  const bool other = ring->rank() == 1;
  Problem problem{.query_seq = 64, .key_seq = 64, .head_dim = 8};
  Options how;
  if (other && what == "dtype") problem.dtype = DType::kBFloat16;
  if (other && what == "length") problem.query_seq = 65;
  if (other && what == "layout") how.layout = Layout::kZigzag;
  if (other && what == "window") how.mask = Mask::window(5, 0);
  if (other && what == "backend") how.backend = "reference";
  if (other && what == "cap") how.logits_soft_cap = 30.0F;
  std::string message = "no error";
  try {
    if (what == "version") {
      guarded(ring.get(), [&] {
        const Plan plan(problem, how, ring->rank(), ring->size(), false);
        compare_plans(*ring, plan, other ? "9.9.9" : "0.1.0");
      });
    } else {
      const RingAttention attention(*ring, problem, how);
    }
  } catch (const Error& error) {
    message = error.code() == ErrorCode::kCommunication ? error.what() : "another code";
  }
  std::printf("%d: %s\n", ring->rank(), message.c_str());
  return 0;
}

int refusals(const Words&) {
  int failed = 0;
  const auto expect = [&](const std::string& part, const auto& make) {
    try {
      make();
      failed += report(part, "not refused");
    } catch (const Error& error) {
      const bool named = std::string(error.what()).find(part) != std::string::npos;
      if (error.code() != ErrorCode::kInvalidArgument || !named)
        failed += report(part, error.what());
    }
  };
  expect("MPI_COMM_NULL", [] { mpi_communicator(MPI_COMM_NULL); });
  expect("expected an MPI_Comm", [] { mpi_communicator('x'); });
  expect("timeout", [] { mpi_communicator(MPI_COMM_WORLD, {.timeout = milliseconds(0)}); });
  expect("largest_message", [] { mpi_communicator(MPI_COMM_WORLD, {.largest_message = 0}); });
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm half = MPI_COMM_NULL;
  MPI_Comm inter = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
  MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, 1 - rank % 2, 3, &inter);
  expect("inter-communicator", [&] { mpi_communicator(inter); });
  std::thread other([&] { expect("another thread", [] { mpi_communicator(MPI_COMM_WORLD); }); });
  other.join();
  MPI_Comm_free(&inter);
  MPI_Comm_free(&half);
  return failed == 0 ? 0 : 1;
}

}  // namespace ringattn::testing
