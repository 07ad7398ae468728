// SPDX-License-Identifier: Apache-2.0
// The in-process ring: transfers arrive whole and in order, and no fault becomes a hang.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "ringattn/communicator.h"
#include "ringattn/error.h"

namespace ringattn {
namespace {

using std::chrono::milliseconds;

/// Runs work(communicator) on one thread per rank; what each rank threw, or "".
template <class Work>
std::vector<std::string> on_ring(int n, milliseconds timeout, const Work& work) {
  auto ring = make_local_ring(n, timeout);
  std::vector<std::string> errors(static_cast<std::size_t>(n));
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r) {
    threads.emplace_back([&, r] {
      try {
        work(*ring[static_cast<std::size_t>(r)]);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kCommunication);
        errors[static_cast<std::size_t>(r)] = error.what();
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(r)] = error.what();
      }
      ring[static_cast<std::size_t>(r)].reset();  // as when a thread ends
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

std::span<const std::byte> bytes_of(const std::vector<int>& v) {
  return std::as_bytes(std::span(v));
}

TEST(LocalRing, HandsOverTheSendersMemory) {
  std::vector<std::vector<int>> data = {{1, 2}, {3, 4}, {5, 6}};
  const auto errors = on_ring(3, milliseconds(20000), [&](Communicator& c) {
    const auto& mine = data[static_cast<std::size_t>(c.rank())];
    const auto ticket = c.shift(bytes_of(mine), {}, 8, 1, {});
    const auto came = c.wait(ticket, {});
    const auto& from = data[static_cast<std::size_t>((c.rank() + 2) % 3)];
    EXPECT_EQ(static_cast<const void*>(came.data()), static_cast<const void*>(from.data()));
    EXPECT_EQ(came.size(), 8U);
    c.finish(ticket, {});
  });
  EXPECT_EQ(errors, std::vector<std::string>(3, ""));
}

TEST(LocalRing, KeepsOrderUnderRandomDelays) {
  // Thousands of short rings; every message says who sent it and when, so a stale one is seen.
  std::mt19937 seeds(1);
  for (int trial = 0; trial < 400; ++trial) {
    const int n = 2 + trial % 4;
    const auto seed = seeds();
    const auto errors = on_ring(n, milliseconds(20000), [&](Communicator& c) {
      std::mt19937 random(static_cast<unsigned>(seed) + static_cast<unsigned>(c.rank()));
      std::vector<int> buffers[2] = {{0, 0}, {0, 0}};
      Communicator::Ticket open[2] = {-1, -1};
      for (int hop = 0; hop < 6; ++hop) {
        if (random() % 3 == 0)
          std::this_thread::sleep_for(std::chrono::microseconds(random() % 60));
        const int offset = hop % 2 == 0 ? 1 : -1;
        auto& out = buffers[hop % 2];
        if (open[hop % 2] >= 0) c.finish(open[hop % 2], {});
        out = {c.rank(), hop};
        open[hop % 2] = c.shift(bytes_of(out), {}, 8, offset, {});
        if (random() % 3 == 0) std::this_thread::yield();
        const auto came = c.wait(open[hop % 2], {});
        int got[2];
        std::memcpy(got, came.data(), sizeof got);
        EXPECT_EQ(got[0], ((c.rank() - offset) % n + n) % n);
        EXPECT_EQ(got[1], hop);
      }
      c.finish(open[0], {});
      c.finish(open[1], {});
    });
    ASSERT_EQ(errors, std::vector<std::string>(static_cast<std::size_t>(n), "")) << trial;
  }
}

TEST(LocalRing, AbortFailsEveryRankAndNamesTheCulprit) {
  const auto errors = on_ring(4, milliseconds(20000), [](Communicator& c) {
    if (c.rank() == 2) {
      c.abort("out of patience");
      return;
    }
    c.wait(c.shift({}, {}, 8, 1, {}), {});
  });
  for (const int r : {0, 1, 3}) {
    EXPECT_EQ(errors[static_cast<std::size_t>(r)], "rank 2 failed: out of patience");
  }
}

TEST(LocalRing, ASilentPeerIsAnErrorWithinTheDeadline) {
  std::atomic<bool> released{false};
  const auto start = std::chrono::steady_clock::now();
  const auto errors = on_ring(3, milliseconds(200), [&](Communicator& c) {
    if (c.rank() == 1) {  // alive, but it never sends
      while (!released) std::this_thread::sleep_for(milliseconds(1));
      return;
    }
    try {
      c.wait(c.shift({}, {}, 8, 1, {}), {});
    } catch (...) {
      if (c.rank() == 2) released = true;
      throw;
    }
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(1200));
  EXPECT_NE(errors[2].find("without an answer"), std::string::npos) << errors[2];
  EXPECT_NE(errors[0].find("failed"), std::string::npos) << errors[0];
}

TEST(LocalRing, ARankThatLeavesFailsItsPeersAtOnce) {
  const auto errors = on_ring(3, milliseconds(60000), [](Communicator& c) {
    if (c.rank() == 0) return;
    c.wait(c.shift({}, {}, 8, 1, {}), {});
  });
  EXPECT_NE(errors[1].find("rank 0 has left the ring"), std::string::npos) << errors[1];
  EXPECT_NE(errors[2].find("rank 0 has left the ring"), std::string::npos) << errors[2];
}

TEST(LocalRing, MessagesOfAnotherSizeAreRefused) {
  std::vector<int> data(4);
  const auto errors = on_ring(2, milliseconds(20000), [&](Communicator& c) {
    const auto ticket = c.shift(bytes_of(data), {}, c.rank() == 0 ? 16 : 8, 1, {});
    try {
      c.wait(ticket, {});
    } catch (const Error& error) {
      c.abort(error.what());
      throw;
    }
    c.finish(ticket, {});
  });
  EXPECT_NE(errors[1].find("rank 1 expected 8 bytes"), std::string::npos) << errors[1];
  EXPECT_NE(errors[1].find("got 16 bytes"), std::string::npos) << errors[1];
}

TEST(LocalRing, ABlockOfAnotherHopOrOwnerIsRefused) {
  std::vector<int> data(2);
  for (const bool other_hop : {true, false}) {
    const auto errors = on_ring(2, milliseconds(20000), [&](Communicator& c) {
      Cargo cargo{1, c.rank(), 1 - c.rank()};
      // Rank 0 only sends, as it would be the first to complain, by chance.
      const bool sends = c.rank() == 0;
      if (sends) (other_hop ? cargo.hop : cargo.sent) = 7;
      const auto ticket = c.shift(sends ? bytes_of(data) : std::span<const std::byte>{}, {},
                                  sends ? 0 : 8, 1, {}, cargo);
      try {
        c.wait(ticket, {});
      } catch (const Error& error) {
        c.abort(error.what());
        throw;
      }
      c.finish(ticket, {});
    });
    const std::string got = other_hop ? "got 8 bytes of the block of rank 0 at hop 7"
                                      : "got 8 bytes of the block of rank 7 at hop 1";
    EXPECT_NE(errors[1].find("expected 8 bytes of the block of rank 0 at hop 1"), std::string::npos)
        << errors[1];
    EXPECT_NE(errors[1].find(got), std::string::npos) << errors[1];
  }
}

TEST(LocalRing, FinishWaitsUntilTheReaderIsDoneEvenAfterAnAbort) {
  std::atomic<bool> reading{false};
  std::atomic<bool> done{false};
  std::vector<int> data(2, 7);
  on_ring(2, milliseconds(20000), [&](Communicator& c) {
    if (c.rank() == 0) {
      const auto ticket = c.shift(bytes_of(data), {}, 0, 1, {});
      while (!reading) std::this_thread::yield();
      c.abort("rank 0 gives up");
      EXPECT_NO_THROW(c.finish(ticket, {}));
      EXPECT_TRUE(done) << "memory was given back while a peer read it";
    } else {
      const auto ticket = c.shift({}, {}, 8, 1, {});
      const auto came = c.wait(ticket, {});
      reading = true;
      std::this_thread::sleep_for(milliseconds(50));
      int got = 0;
      std::memcpy(&got, came.data(), sizeof got);
      EXPECT_EQ(got, 7);
      done = true;
      c.finish(ticket, {});
    }
  });
}

TEST(LocalRing, AReaderThatGoesWithoutFinishingHoldsNobody) {
  std::atomic<bool> gone{false};
  std::vector<int> data(2, 7);
  auto ring = make_local_ring(2, milliseconds(60000));
  const auto ticket = ring[0]->shift(bytes_of(data), {}, 0, 1, {});
  ring[1]->wait(ring[1]->shift({}, {}, 8, 1, {}), {});
  std::thread sender([&] {
    EXPECT_NO_THROW(ring[0]->finish(ticket, {}));
    EXPECT_TRUE(gone);
  });
  std::this_thread::sleep_for(milliseconds(20));
  gone = true;
  ring[1].reset();
  sender.join();
}

TEST(LocalRing, NeedsAtLeastOneRank) {
  EXPECT_THROW(make_local_ring(0), Error);
  EXPECT_EQ(make_local_ring(1)[0]->size(), 1);
}

}  // namespace
}  // namespace ringattn
