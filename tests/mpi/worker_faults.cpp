// SPDX-License-Identifier: Apache-2.0
// Scenarios in which a rank is lost. The world is cut into rings of N ranks; each ring has its own
// fault, so that one start of mpirun tries many of them.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <functional>
#include <stdexcept>

#include <unistd.h>

#include "ringattn/mpi.h"
#include "support/data.h"
#include "support/ring_rank.h"
#include "worker.h"

namespace ringattn::testing {
namespace {

using Clock = std::chrono::steady_clock;  // one clock for all processes of a machine

std::int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch())
      .count();
}

/// Counts shift and wait, and does something at one of them.
class Counting final : public Communicator {
 public:
  Counting(std::unique_ptr<Communicator> inner, int at, std::function<void()> act)
      : inner_(std::move(inner)), at_(at), act_(std::move(act)) {}
  int rank() const noexcept override { return inner_->rank(); }
  int size() const noexcept override { return inner_->size(); }
  std::string_view name() const noexcept override { return inner_->name(); }
  bool hands_over() const noexcept override { return inner_->hands_over(); }
  Ticket shift(std::span<const std::byte> out, std::span<std::byte> in, std::size_t expected,
               int offset, Stream stream, Cargo cargo) override {
    if (!out.empty()) last_send_ = verbs_;
    count();
    return inner_->shift(out, in, expected, offset, stream, cargo);
  }
  std::span<const std::byte> wait(Ticket ticket, Stream stream) override {
    count();
    return inner_->wait(ticket, stream);
  }
  void finish(Ticket ticket, Stream stream) override {
    began_ = now_ms();
    inner_->finish(ticket, stream);
  }
  void progress() noexcept override { inner_->progress(); }
  void abort(std::string_view reason) noexcept override { inner_->abort(reason); }

  int verbs() const { return verbs_; }
  int last_send() const { return last_send_; }
  std::int64_t began() const { return began_; }  // the latest verb

 private:
  void count() {
    began_ = now_ms();
    if (verbs_++ == at_) act_();
  }

  std::unique_ptr<Communicator> inner_;
  int at_;
  std::function<void()> act_;
  int verbs_ = 0;
  int last_send_ = 0;
  std::int64_t began_ = 0;
};

/// A line of the record that the test reads. Complete or not there.
void write_line(const std::string& path, const std::string& text) {
  std::ofstream(path + ".part") << text << std::endl;
  std::rename((path + ".part").c_str(), path.c_str());
}

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
  rank.cut_inputs(data.inputs(), options.layout, ring.size(), false);
  rank.make_outputs(settings, problem);
  rank.run_pass(false, false);
  rank.run_pass(true, false);
}

}  // namespace

int count_verbs(const Words& words) {
  const std::string folder = words.at(0);
  Counting ring(ring_of(std::stoi(words.at(1)), std::chrono::seconds(60)), -1, [] {});
  attend(ring);
  if (ring.rank() == 0) {
    write_line(folder + "/verbs",
               std::to_string(ring.verbs()) + " " + std::to_string(ring.last_send()));
  }
  return 0;
}

/// DIR TIMEOUT_MS N CULPRIT:VERB:KIND...; KIND is kill, stop, exit or throw; one for each ring.
/// Every rank writes DIR/RANK: its pid, then how it ended.
int faults(const Words& words) {
  const std::string folder = words.at(0);
  const std::chrono::milliseconds timeout(std::stoi(words.at(1)));
  const int n = std::stoi(words.at(2));
  int world_rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  const std::string trial = words.at(3 + static_cast<std::size_t>(world_rank / n));
  const std::size_t colon = trial.find(':');
  const std::size_t second = trial.find(':', colon + 1);
  const int culprit = std::stoi(trial.substr(0, colon));
  const int verb = std::stoi(trial.substr(colon + 1, second - colon - 1));
  const std::string kind = trial.substr(second + 1);
  const std::string file = folder + "/" + std::to_string(world_rank);
  write_line(file + ".pid", std::to_string(::getpid()));
  auto inner = ring_of(n, timeout);
  const bool guilty = inner->rank() == culprit;
  MPI_Barrier(MPI_COMM_WORLD);  // all rings are made, all pids are known
  Counting ring(std::move(inner), guilty ? verb : -1, [&] {
    write_line(file + ".fault", std::to_string(now_ms()));
    if (kind == "kill") ::kill(::getpid(), SIGKILL);
    if (kind == "stop") ::kill(::getpid(), SIGSTOP);
    if (kind == "exit") ::_exit(0);
    if (kind == "throw") throw std::runtime_error("the cable was cut");
  });
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
