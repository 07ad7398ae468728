// SPDX-License-Identifier: Apache-2.0
// RingAttention on a real ring of threads: gradients come home, faults at any hop fail every rank,
// different options are refused, counts are what the plan says.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "dtype.h"
#include "io/host_tensor.h"
#include "plan.h"
#include "ringattn/attention.h"

namespace ringattn {
namespace {

using std::chrono::milliseconds;

HostTensor random_tensor(std::vector<std::int64_t> shape, std::uint64_t seed) {
  HostTensor t(DType::kFloat32, std::move(shape));
  std::uint64_t x = seed * 0x9E3779B97F4A7C15U + 1;
  for (std::int64_t i = 0; i < t.elements(); ++i) {
    x = x * 6364136223846793005U + 1442695040888963407U;
    t.as<float>()[i] = static_cast<float>(static_cast<std::int64_t>(x >> 40) - (1 << 23)) / 4e6F;
  }
  return t;
}

/// Counts the verbs of a rank, and fails at the one it is told to.
class Faulty final : public Communicator {
 public:
  Faulty(std::unique_ptr<Communicator> inner, int fail_at)
      : inner_(std::move(inner)), fail_at_(fail_at) {}
  int rank() const noexcept override { return inner_->rank(); }
  int size() const noexcept override { return inner_->size(); }
  std::string_view name() const noexcept override { return "faulty"; }
  bool hands_over() const noexcept override { return inner_->hands_over(); }
  Ticket shift(std::span<const std::byte> out, std::span<std::byte> in, std::size_t expected,
               int offset, Stream stream, Cargo cargo) override {
    count();
    return inner_->shift(out, in, expected, offset, stream, cargo);
  }
  std::span<const std::byte> wait(Ticket ticket, Stream stream) override {
    count();
    return inner_->wait(ticket, stream);
  }
  void finish(Ticket ticket, Stream stream) override { inner_->finish(ticket, stream); }
  void abort(std::string_view reason) noexcept override { inner_->abort(reason); }
  int verbs() const { return verbs_; }

 private:
  void count() {
    if (verbs_++ == fail_at_) throw std::runtime_error("the cable was cut");
  }
  std::unique_ptr<Communicator> inner_;
  int fail_at_;
  int verbs_ = 0;
};

/// A ring that copies into receive buffers, as one over a network does.
class Copying final : public Communicator {
 public:
  explicit Copying(std::unique_ptr<Communicator> inner) : inner_(std::move(inner)) {}
  int rank() const noexcept override { return inner_->rank(); }
  int size() const noexcept override { return inner_->size(); }
  std::string_view name() const noexcept override { return "copying"; }
  bool hands_over() const noexcept override { return false; }
  Ticket shift(std::span<const std::byte> out, std::span<std::byte> in, std::size_t expected,
               int offset, Stream stream, Cargo cargo) override {
    EXPECT_EQ(in.size(), expected);
    sent_.emplace_back(out.begin(), out.end());  // what MPI's own buffers would do
    into_.push_back(in);
    return inner_->shift(sent_.back(), {}, expected, offset, stream, cargo);
  }
  std::span<const std::byte> wait(Ticket ticket, Stream stream) override {
    const auto came = inner_->wait(ticket, stream);
    const auto in = into_[static_cast<std::size_t>(ticket)];
    std::copy(came.begin(), came.end(), in.begin());
    return in;
  }
  void finish(Ticket ticket, Stream stream) override { inner_->finish(ticket, stream); }
  void abort(std::string_view reason) noexcept override { inner_->abort(reason); }

 private:
  std::unique_ptr<Communicator> inner_;
  std::deque<std::vector<std::byte>> sent_;
  std::vector<std::span<std::byte>> into_;
};

struct Rank {
  HostTensor q, k, v, dout, out, lse, dq, dk, dv;
};

Problem small_problem(std::int64_t seq) {
  Problem p;
  p.query_seq = p.key_seq = seq;
  p.query_heads = 2;
  p.kv_heads = 1;
  p.head_dim = 8;
  return p;
}

Rank make_rank(const Problem& p, const Options& o, int world, int rank) {
  const std::int64_t n = positions(o.layout, p.query_seq, world, rank).size();
  const auto seed = static_cast<std::uint64_t>(rank);
  return {random_tensor({1, n, 2, 8}, seed * 7 + 1), random_tensor({1, n, 1, 8}, seed * 7 + 2),
          random_tensor({1, n, 1, 8}, seed * 7 + 3), random_tensor({1, n, 2, 8}, seed * 7 + 4),
          HostTensor(DType::kFloat32, {1, n, 2, 8}), HostTensor(DType::kFloat32, {1, 2, n}),
          HostTensor(DType::kFloat32, {1, n, 2, 8}), HostTensor(DType::kFloat32, {1, n, 1, 8}),
          HostTensor(DType::kFloat32, {1, n, 1, 8})};
}

PassCounts run_forward(RingAttention& a, Rank& t) {
  ForwardArgs f;
  f.query = t.q.view();
  f.key = t.k.view();
  f.value = t.v.view();
  f.out = t.out.view();
  f.lse = t.lse.view();
  return a.forward(f);
}

PassCounts run_backward(RingAttention& a, Rank& t) {
  BackwardArgs b;
  b.query = t.q.view();
  b.key = t.k.view();
  b.value = t.v.view();
  b.out = t.out.view();
  b.lse = t.lse.view();
  b.dout = t.dout.view();
  b.dquery = t.dq.view();
  b.dkey = t.dk.view();
  b.dvalue = t.dv.view();
  return a.backward(b);
}

/// One thread per rank; what each threw.
template <class Wrap, class Work>
std::vector<std::string> on_ring(int world, const Wrap& wrap, const Work& work) {
  auto ring = make_local_ring(world, milliseconds(20000));
  std::vector<std::string> errors(static_cast<std::size_t>(world));
  std::vector<std::thread> threads;
  for (int r = 0; r < world; ++r) {
    threads.emplace_back([&, r] {
      const auto i = static_cast<std::size_t>(r);
      auto communicator = wrap(std::move(ring[i]));
      try {
        work(*communicator, r);
      } catch (const std::exception& error) {
        errors[i] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

const auto kPlain = [](std::unique_ptr<Communicator> c) { return c; };

TEST(Ring, AFaultAtAnyVerbOfAnyRankFailsEveryRank) {
  const Problem problem = small_problem(37);
  int trials = 0;
  for (const int world : {2, 3, 4}) {
    for (int culprit = 0; culprit < world; ++culprit) {
      for (int at = 0;; ++at) {
        std::atomic<bool> reached{false};
        const auto errors = on_ring(
            world,
            [&](std::unique_ptr<Communicator> c) {
              const int fail_at = c->rank() == culprit ? at : -1;
              return std::make_unique<Faulty>(std::move(c), fail_at);
            },
            [&](Faulty& c, int r) {
              Rank t = make_rank(problem, {}, world, r);
              RingAttention attention(c, problem);
              run_forward(attention, t);
              run_backward(attention, t);
              if (r == culprit) reached = true;
            });
        if (reached) break;  // fewer verbs than `at`: nothing failed
        ++trials;
        EXPECT_EQ(errors[static_cast<std::size_t>(culprit)], "the cable was cut");
        int noticed = 0;
        for (int r = 0; r < world; ++r) {
          const std::string& e = errors[static_cast<std::size_t>(r)];
          // A rank that needs nothing more from the culprit may have finished before the fault.
          if (r == culprit || e.empty()) continue;
          ++noticed;
          EXPECT_EQ(e, "rank " + std::to_string(culprit) + " failed: the cable was cut");
        }
        EXPECT_GT(noticed, 0) << "whoever sends to the culprit cannot have finished";
      }
    }
  }
  EXPECT_GT(trials, 100);
}

TEST(Ring, GradientsReturnToTheirOwnerOverRingsThatCopy) {
  // The same bits as over the ring that hands memory over, for every layout and a window that
  // sends both ways.
  for (const Layout layout : {Layout::kContiguous, Layout::kZigzag, Layout::kStriped}) {
    for (const Mask& mask : {Mask::full(), Mask::causal(), Mask::window(7, 12)}) {
      for (const int world : {2, 3, 5}) {
        const Problem problem = small_problem(41);
        Options options;
        options.layout = layout;
        options.mask = mask;
        std::vector<Rank> a(static_cast<std::size_t>(world));
        std::vector<Rank> b(static_cast<std::size_t>(world));
        const auto work = [&](std::vector<Rank>& ranks) {
          return [&](Communicator& c, int r) {
            Rank& t = ranks[static_cast<std::size_t>(r)];
            t = make_rank(problem, options, world, r);
            RingAttention attention(c, problem, options);
            run_forward(attention, t);
            run_backward(attention, t);
          };
        };
        const std::vector<std::string> fine(static_cast<std::size_t>(world));
        ASSERT_EQ(on_ring(world, kPlain, work(a)), fine);
        ASSERT_EQ(on_ring(
                      world,
                      [](std::unique_ptr<Communicator> c) {
                        return std::make_unique<Copying>(std::move(c));
                      },
                      work(b)),
                  fine);
        for (std::size_t r = 0; r < a.size(); ++r) {
          const auto same = [](const HostTensor& x, const HostTensor& y) {
            return std::equal(x.data(), x.data() + x.size_bytes(), y.data());
          };
          EXPECT_TRUE(same(a[r].out, b[r].out));
          EXPECT_TRUE(same(a[r].dq, b[r].dq));
          EXPECT_TRUE(same(a[r].dk, b[r].dk)) << name(layout) << " " << mask.to_string();
          EXPECT_TRUE(same(a[r].dv, b[r].dv));
        }
      }
    }
  }
}

TEST(Ring, DifferentOptionsAreRefusedOnEveryRankBeforeDataMoves) {
  const Problem problem = small_problem(16);
  const auto errors = on_ring(3, kPlain, [&](Communicator& c, int r) {
    Options options;
    options.mask = Mask::window(r == 1 ? 5 : 4, 0);
    RingAttention attention(c, problem, options);
  });
  const std::string text =
      "sliding_window left: expected the same on every rank, got 4 on rank 0 and 5 on rank 1";
  for (const std::string& e : errors) {
    // A rank may hear of it from a faster one before it has seen all records itself.
    EXPECT_TRUE(e.ends_with(text)) << e;
  }
}

TEST(Ring, OptionsRefusedOnOneRankFailAllOfThem) {
  const auto errors = on_ring(2, kPlain, [&](Communicator& c, int r) {
    Options options;
    if (r == 1) options.logits_soft_cap = -1.0F;
    RingAttention attention(c, small_problem(16), options);
  });
  EXPECT_EQ(errors[1], "logits_soft_cap: expected a finite number > 0, got -1.000000");
  EXPECT_EQ(errors[0], "rank 1 failed: " + errors[1]);
}

TEST(Ring, AWrongTensorOnOneRankFailsAllOfThem) {
  const Problem problem = small_problem(16);
  const auto errors = on_ring(2, kPlain, [&](Communicator& c, int r) {
    Rank t = make_rank(problem, {}, 2, r);
    if (r == 0) t.k = HostTensor(DType::kFloat32, {1, 9, 1, 8});
    RingAttention attention(c, problem);
    run_forward(attention, t);
  });
  EXPECT_EQ(errors[0], "key: expected shape [1, 8, 1, 8], got [1, 9, 1, 8]");
  EXPECT_EQ(errors[1], "rank 0 failed: " + errors[0]);
}

TEST(Ring, SendsWhatThePlanSays) {
  for (const Layout layout : {Layout::kContiguous, Layout::kZigzag, Layout::kStriped}) {
    for (const Mask& mask :
         {Mask::full(), Mask::causal(), Mask::window(20, 0), Mask::window(0, 9), Mask::chunk(13)}) {
      const Problem problem = small_problem(130);
      Options options;
      options.layout = layout;
      options.mask = mask;
      const int world = 4;
      const auto errors = on_ring(world, kPlain, [&](Communicator& c, int r) {
        Rank t = make_rank(problem, options, world, r);
        RingAttention attention(c, problem, options);
        const Plan plan(problem, options, r, world, true);
        EXPECT_EQ(run_forward(attention, t), plan.counts(Pass::kForward, r));
        EXPECT_EQ(run_backward(attention, t), plan.counts(Pass::kBackward, r));
      });
      EXPECT_EQ(errors, std::vector<std::string>(4));
    }
  }
}

}  // namespace
}  // namespace ringattn
