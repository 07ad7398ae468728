// SPDX-License-Identifier: Apache-2.0
// A ring over MPI, by nonblocking calls of the calling thread only. All that includes <mpi.h>.
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <exception>
#include <list>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/alarm.h"
#include "comm/envelope.h"
#include "memory.h"
#include "ring.h"
#include "ringattn/error.h"
#include "ringattn/mpi.h"

namespace ringattn {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// Every MPI promises tags up to this one.
constexpr int kNoticeTag = 32767;
/// Data tags count transfers, two for each, so that a message of another one is never matched.
constexpr std::int64_t kTransferTags = 16000;

void check(int result, const char* call) {
  if (result == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(result, text.data(), &length);
  throw Error(ErrorCode::kCommunication, std::string(call) + ": " + text.data());
}

/// Requests of one kind, and how many of them are done.
class Requests {
 public:
  MPI_Request* add() { return &requests_.emplace_back(MPI_REQUEST_NULL); }
  int all() const { return static_cast<int>(requests_.size()); }

  int done() {
    while (first_ < requests_.size()) {
      int complete = 0;
      check(MPI_Test(&requests_[first_], &complete, MPI_STATUS_IGNORE), "MPI_Test");
      if (complete == 0) break;
      ++first_;
    }
    return static_cast<int>(first_);
  }

  void cancel() {
    for (MPI_Request& request : requests_) {
      if (request != MPI_REQUEST_NULL) MPI_Cancel(&request);
    }
  }

 private:
  std::vector<MPI_Request> requests_;
  std::size_t first_ = 0;  // those before it are done
};

/// Notices through one receive that is always posted, and sends that nobody waits for.
class MpiMail final : public Mail {
 public:
  explicit MpiMail(MPI_Comm comm) : comm_(comm) { post(); }

  void send(int to, const Notice& notice) override {
    outgoing_.push_back({notice, MPI_REQUEST_NULL});
    Letter& letter = outgoing_.back();
    const int result =
        MPI_Isend(&letter.notice, sizeof(Notice), MPI_BYTE, to, kNoticeTag, comm_, &letter.request);
    // Some MPIs know that a process is gone: it does not answer, like any other that is lost.
    if (result != MPI_SUCCESS) outgoing_.pop_back();
  }

  bool receive(Notice& notice) override {
    for (auto it = outgoing_.begin(); it != outgoing_.end();) {
      int sent = 0;
      const bool failed = MPI_Test(&it->request, &sent, MPI_STATUS_IGNORE) != MPI_SUCCESS;
      it = sent != 0 || failed ? outgoing_.erase(it) : std::next(it);
    }
    int came = 0;
    check(MPI_Test(&request_, &came, MPI_STATUS_IGNORE), "MPI_Test");
    if (came == 0) return false;
    notice = incoming_;
    post();
    return true;
  }

  /// No more notices; false if some could not be withdrawn at once.
  bool close() {
    MPI_Cancel(&request_);
    int done = 0;
    MPI_Test(&request_, &done, MPI_STATUS_IGNORE);
    return done != 0 && outgoing_.empty();
  }

 private:
  struct Letter {
    Notice notice;
    MPI_Request request;
  };

  void post() {
    check(MPI_Irecv(&incoming_, sizeof(Notice), MPI_BYTE, MPI_ANY_SOURCE, kNoticeTag, comm_,
                    &request_),
          "MPI_Irecv");
  }

  MPI_Comm comm_;
  Notice incoming_;
  MPI_Request request_ = MPI_REQUEST_NULL;
  std::list<Letter> outgoing_;
};

class MpiCommunicator final : public Communicator {
 public:
  /// Takes over `comm`.
  MpiCommunicator(MPI_Comm comm, int rank, int size, const MpiOptions& options)
      : comm_(comm),
        rank_(rank),
        size_(size),
        largest_(options.largest_message),
        mail_(std::make_unique<MpiMail>(comm)),
        alarm_(*mail_, rank, size, options.timeout),
        sent_(static_cast<std::size_t>(size), 0),
        expected_(static_cast<std::size_t>(size), 0),
        exceptions_(std::uncaught_exceptions()) {}

  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  ~MpiCommunicator() override {
    if (std::uncaught_exceptions() > exceptions_) abort("left with an exception");
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0 && !alarm_.raised() && transfers_.empty() && mail_->close()) {
      MPI_Comm_free(&comm_);
      return;
    }
    // MPI may still use what it was given: better a leak than a write to memory of others.
    (void)mail_.release();
    (void)new std::map<Ticket, Transfer>(std::move(transfers_));
  }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }
  std::string_view name() const noexcept override { return "mpi"; }
  bool hands_over() const noexcept override { return false; }

  Ticket shift(std::span<const std::byte> out, std::span<std::byte> in, std::size_t expected,
               int offset, Stream, Cargo cargo) override {
    Transfer& t = transfers_[next_];
    t.to = peer(offset);
    t.from = peer(-offset);
    t.in = in;
    if (alarm_.raised()) return next_++;  // wait() says so
    if (expected > 0) {
      auto& number = expected_[static_cast<std::size_t>(t.from)];
      t.expected = envelope(t.from, cargo.hop, cargo.expected, number++, expected);
      const int tag = static_cast<int>(t.expected.number % kTransferTags) * 2;
      check(MPI_Irecv(&t.came, sizeof t.came, MPI_BYTE, t.from, tag, comm_, t.receives.add()),
            "MPI_Irecv");
      for_each_message(in.size(), [&](std::size_t at, int bytes) {
        check(MPI_Irecv(in.data() + at, bytes, MPI_BYTE, t.from, tag + 1, comm_, t.receives.add()),
              "MPI_Irecv");
      });
    }
    if (!out.empty()) {
      auto& number = sent_[static_cast<std::size_t>(t.to)];
      t.sent = envelope(rank_, cargo.hop, cargo.sent, number++, out.size());
      const int tag = static_cast<int>(t.sent.number % kTransferTags) * 2;
      check_peer(t.to, [&] {
        check(MPI_Isend(&t.sent, sizeof t.sent, MPI_BYTE, t.to, tag, comm_, t.sends.add()),
              "MPI_Isend");
      });
      for_each_message(out.size(), [&](std::size_t at, int bytes) {
        check_peer(t.to, [&] {
          check(MPI_Isend(out.data() + at, bytes, MPI_BYTE, t.to, tag + 1, comm_, t.sends.add()),
                "MPI_Isend");
        });
      });
    }
    return next_++;
  }

  std::span<const std::byte> wait(Ticket ticket, Stream) override {
    Transfer& t = transfers_.at(ticket);
    alarm_.throw_if_raised();
    if (t.receives.all() == 0) return {};
    // The envelope first: with a wrong one, the rest may never come.
    until(t.from, 1, t.receives);
    alarm_.throw_if_raised();
    require_equal(t.came, t.expected, rank_);
    until(t.from, t.receives.all(), t.receives);
    if (t.receives.done() < t.receives.all()) alarm_.throw_if_raised();
    return t.in;
  }

  void finish(Ticket ticket, Stream) override {
    Transfer& t = transfers_.at(ticket);
    if (!alarm_.raised()) {
      until(t.from, t.receives.all(), t.receives);
      until(t.to, t.sends.all(), t.sends);
    }
    if (alarm_.raised()) settle(t);
    const bool sent = t.sends.done() == t.sends.all();
    if (sent && t.receives.done() == t.receives.all()) transfers_.erase(ticket);
    if (!sent) alarm_.throw_if_raised();
  }

  void abort(std::string_view reason) noexcept override {
    try {
      alarm_.raise(rank_, "failed: " + std::string(reason));
    } catch (const std::exception&) {  // MPI refuses: the peers' deadlines must do
    }
  }

  void progress() noexcept override {
    try {
      alarm_.listen();
    } catch (const std::exception&) {  // the next wait meets it again
    }
  }

 private:
  struct Transfer {
    int from = -1;
    int to = -1;
    std::span<std::byte> in;
    Envelope expected, came, sent;
    Requests receives, sends;
  };

  /// What MPI says of `peer` when a call about it fails is an alarm like any other.
  template <class Calls>
  void check_peer(int peer, const Calls& calls) {
    try {
      calls();
    } catch (const Error& error) {
      alarm_.raise(peer, std::string("is lost or silent: ") + error.what());
      alarm_.throw_if_raised();
    }
  }

  /// Waits for `all` of the requests, which only `peer` can complete.
  void until(int peer, int all, Requests& requests) {
    check_peer(peer,
               [&] { alarm_.until(peer, all, [&] { return std::min(requests.done(), all); }); });
  }

  int peer(int offset) const { return ((rank_ + offset) % size_ + size_) % size_; }

  template <class Message>
  void for_each_message(std::size_t bytes, const Message& message) const {
    for (std::size_t at = 0; at < bytes; at += largest_) {
      message(at, static_cast<int>(std::min(largest_, bytes - at)));
    }
  }

  /// After a failure: withdraws what has not begun, and waits a moment for what has, so that living
  /// peers end with their memory to themselves.
  void settle(Transfer& t) {
    constexpr milliseconds kSettle{100};
    if (settled_ == Clock::time_point()) settled_ = Clock::now() + kSettle;
    t.receives.cancel();
    Pause pause;
    while (Clock::now() < settled_ &&
           (t.receives.done() < t.receives.all() || t.sends.done() < t.sends.all())) {
      alarm_.listen();
      pause();
    }
  }

  MPI_Comm comm_;
  int rank_;
  int size_;
  std::size_t largest_;
  std::unique_ptr<MpiMail> mail_;
  Alarm alarm_;
  std::vector<std::int64_t> sent_;      // transfers to each rank
  std::vector<std::int64_t> expected_;  // and from it
  int exceptions_;
  Ticket next_ = 0;
  std::map<Ticket, Transfer> transfers_;  // its nodes stay where they are
  Clock::time_point settled_;             // when to wait no more
};

void check_options(const MpiOptions& options) {
  if (options.timeout <= milliseconds(0)) {
    throw Error(ErrorCode::kInvalidArgument,
                "timeout: expected more than 0 ms, got " + std::to_string(options.timeout.count()));
  }
  constexpr std::size_t kMost = 0x7FFFFFFF;
  if (options.largest_message < 1 || options.largest_message > kMost) {
    throw Error(ErrorCode::kInvalidArgument, "largest_message: expected 1 to 2147483647, got " +
                                                 std::to_string(options.largest_message));
  }
}

void check_usable() {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (initialized == 0 || finalized != 0) {
    throw Error(ErrorCode::kInvalidArgument, std::string("MPI: expected to be initialised, is ") +
                                                 (initialized == 0 ? "not" : "finalised"));
  }
  int level = MPI_THREAD_SINGLE;
  int main = 0;
  MPI_Query_thread(&level);
  MPI_Is_thread_main(&main);
  if (level < MPI_THREAD_SERIALIZED && main == 0) {
    throw Error(ErrorCode::kInvalidArgument,
                "MPI: expected a call from the thread that initialised it, or "
                "MPI_THREAD_SERIALIZED, got a call from another thread");
  }
}

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(const void* comm, std::size_t size,
                                                    const MpiOptions& options) {
  if (size != sizeof(MPI_Comm)) {
    throw Error(ErrorCode::kInvalidArgument,
                "comm: expected an MPI_Comm of " + mpi_library() + ", got another type");
  }
  check_options(options);
  check_usable();
  MPI_Comm given = *static_cast<const MPI_Comm*>(comm);
  if (given == MPI_COMM_NULL) {
    throw Error(ErrorCode::kInvalidArgument,
                "comm: expected an intra-communicator, got MPI_COMM_NULL");
  }
  int inter = 0;
  check(MPI_Comm_test_inter(given, &inter), "MPI_Comm_test_inter");
  if (inter != 0) {
    throw Error(ErrorCode::kInvalidArgument,
                "comm: expected an intra-communicator, got an inter-communicator");
  }
  MPI_Comm own = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Comm_idup(given, &own, &request), "MPI_Comm_idup");
  const Clock::time_point end = Clock::now() + options.timeout;
  int done = 0;
  for (Pause pause; done == 0; pause()) {
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done == 0 && Clock::now() >= end) {
      throw Error(ErrorCode::kCommunication,
                  "waited " + std::to_string(options.timeout.count()) +
                      " ms for all ranks to make the ring, and some did not come");
    }
  }
  check(MPI_Comm_set_errhandler(own, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  int rank = 0;
  int ranks = 1;
  check(MPI_Comm_rank(own, &rank), "MPI_Comm_rank");
  check(MPI_Comm_size(own, &ranks), "MPI_Comm_size");
  return std::make_unique<MpiCommunicator>(own, rank, ranks, options);
}

MpiProcess::MpiProcess(const MpiOptions& options) : options_(options) {
  check_options(options);
  int level = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level), "MPI_Init_thread");
  ring_ = mpi_communicator(MPI_COMM_WORLD, options);
}

MpiProcess::~MpiProcess() = default;

void MpiProcess::end() {
  std::vector<std::byte> here(static_cast<std::size_t>(ring_->size()));
  gather(*ring_, host_memory(), here, 1, {});
  ring_.reset();
  // MPICH over a slow network may wait in MPI_Finalize for ranks that have left it. All is done by
  // now, so nobody has to wait for long.
  constexpr milliseconds kFinalize{10000};
  std::thread([patience = std::min(options_.timeout, kFinalize)] {
    std::this_thread::sleep_for(patience);
    ::_exit(4);
  }).detach();
  check(MPI_Finalize(), "MPI_Finalize");
}

std::string mpi_library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  std::string line(text.data());
  line = line.substr(0, line.find('\n'));
  std::replace(line.begin(), line.end(), '\t', ' ');
  return line;
}

}  // namespace ringattn
