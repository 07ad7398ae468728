// SPDX-License-Identifier: Apache-2.0
// Scenarios in which a rank is lost. The world is cut into rings of N ranks; each ring has its own
// fault, so that one start of mpirun tries many of them.
#include <unistd.h>

#include "faulty.h"
#include "ringattn/mpi.h"
#include "support/data.h"
#include "support/ring_rank.h"
#include "worker.h"

namespace ringattn::testing {
namespace {

std::unique_ptr<Communicator> ring_of(int n, std::chrono::milliseconds timeout) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm part = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank / n, rank, &part);
  MpiOptions options;
  options.timeout = timeout;
  return mpi_communicator(part, options);
}

/// Segment ids: so that the summaries are exchanged as well. Sinks: so that their gradients are.
void attend(Communicator& ring) {
  support::Case c = support::parse_case("sq37_h2x1_d8_seg_sink_bwd");
  c.ring = ring.size();
  const support::CaseData data = support::make_data(c);
  const Problem problem = support::make_problem(c);
  Options options = support::make_options(c, data);
  options.executor = make_thread_pool(1);
  support::RingSettings settings;
  settings.backward = true;
  support::RingRank rank;
  rank.rank = ring.rank();
  rank.attention = std::make_unique<RingAttention>(ring, problem, options);
  rank.cut_inputs(data.inputs(), options.layout, ring.size(), support::Guard::kNone);
  rank.make_outputs(settings, problem);
  rank.run_pass(false, support::Guard::kNone);
  rank.run_pass(true, support::Guard::kNone);
}

}  // namespace

int count_verbs(const Words& words) {
  const std::string folder = words.at(0);
  const auto inner = ring_of(std::stoi(words.at(1)), std::chrono::seconds(60));
  Faulty ring(*inner);
  attend(ring);
  if (ring.rank() == 0) {
    write_line(folder + "/verbs",
               std::to_string(ring.verbs()) + " " + std::to_string(ring.last_send()));
  }
  return 0;
}

/// DIR TIMEOUT_MS: rings until something fails. Every rank writes DIR/RANK.begun, and then how and
/// when it ended.
int endless(const Words& words) {
  MpiOptions options;
  options.timeout = std::chrono::milliseconds(std::stoi(words.at(1)));
  const auto ring = mpi_communicator(MPI_COMM_WORLD, options);
  const std::string file = words.at(0) + "/" + std::to_string(ring->rank());
  int code = 0;
  std::string message = "finished";
  try {
    attend(*ring);
    write_line(file + ".begun", "");
    for (;;) attend(*ring);
  } catch (const Error& error) {
    code = error.code() == ErrorCode::kCommunication ? 4 : 1;
    message = error.what();
  }
  write_line(file + ".end", std::to_string(code) + " " + std::to_string(now_ms()) + " " + message);
  ::_exit(code);
}

/// DIR TIMEOUT_MS N CULPRIT:VERB:KIND...; KIND is kill, stop, exit or throw; one for each ring.
/// Every rank writes DIR/RANK: its pid, then how it ended.
int faults(const Words& words) {
  const std::string folder = words.at(0);
  const std::chrono::milliseconds timeout(std::stoi(words.at(1)));
  const int n = std::stoi(words.at(2));
  int world_rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  const Fault fault = Fault::parse(words.at(3 + static_cast<std::size_t>(world_rank / n)));
  const std::string file = folder + "/" + std::to_string(world_rank);
  write_line(file + ".pid", std::to_string(::getpid()));
  const auto inner = ring_of(n, timeout);
  MPI_Barrier(MPI_COMM_WORLD);  // all rings are made, all pids are known
  Faulty ring(*inner, fault, [&] { write_line(file + ".fault", std::to_string(now_ms())); });
  int code = 0;
  std::string message = "finished";
  try {
    attend(ring);
  } catch (const Error& error) {
    code = error.code() == ErrorCode::kCommunication ? 4 : 1;
    message = error.what();
  } catch (const std::exception& error) {
    code = 1;
    message = error.what();
  }
  write_line(file + ".end", std::to_string(code) + " " + std::to_string(ring.began()) + " " +
                                std::to_string(now_ms()) + " " + message);
  ::_exit(code);  // as a program should that has lost a peer; MPI_Finalize may wait for ever
}

}  // namespace ringattn::testing
