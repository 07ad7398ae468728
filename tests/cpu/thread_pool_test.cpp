// SPDX-License-Identifier: Apache-2.0
// The pool: every task once, callers that share it never exceed its threads, nobody waits forever.
#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "ringattn/error.h"
#include "ringattn/executor.h"

namespace ringattn {
namespace {

TEST(ThreadPool, RunsEveryTaskExactlyOnce) {
  for (const int threads : {1, 2, 5}) {
    const auto pool = make_thread_pool(threads);
    EXPECT_EQ(pool->threads(), threads);
    for (const std::int64_t n : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n));
      pool->run(n, [&](std::int64_t i) { ++calls[static_cast<std::size_t>(i)]; });
      for (const auto& c : calls) ASSERT_EQ(c, 1);
    }
  }
}

/// With one thread a caller is woken by nobody but another caller.
TEST(ThreadPool, CallersThatShareItAllEndAndNeverExceedItsThreads) {
  for (const int threads : {1, 2, 3}) {
    const auto pool = make_thread_pool(threads);
    std::atomic<int> running{0};
    std::atomic<int> most{0};
    std::atomic<int> total{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 6; ++c) {
      callers.emplace_back([&, c] {
        for (int round = 0; round < 20; ++round) {
          pool->run(1 + c, [&](std::int64_t) {
            const int now = ++running;
            for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
            }
            std::this_thread::sleep_for(std::chrono::microseconds(20));
            --running;
            ++total;
          });
        }
      });
    }
    for (auto& caller : callers) caller.join();
    EXPECT_EQ(total, 20 * (1 + 2 + 3 + 4 + 5 + 6));
    EXPECT_LE(most, threads);
  }
}

/// Its last task is under way elsewhere: it does those of another caller, or leaves its place to a
/// thread of the pool.
TEST(ThreadPool, NoPlaceIsEmptyWhileACallerWaitsForItsOwnTasks) {
  const auto pool = make_thread_pool(2);
  const std::thread::id first = std::this_thread::get_id();
  std::atomic<int> began{0};
  std::atomic<int> others{0};
  const auto reaches = [](const std::atomic<int>& count, int n) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (count < n && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    return count >= n;
  };
  std::thread second([&] {
    reaches(began, 2);  // both places are taken
    pool->run(6, [&](std::int64_t) { ++others; });
  });
  std::atomic<int> failures{0};
  pool->run(2, [&](std::int64_t) {
    ++began;
    if (std::this_thread::get_id() == first) {
      if (!reaches(began, 2)) ++failures;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // until the second one waits
    } else if (!reaches(others, 6)) {
      ++failures;
    }
  });
  second.join();
  EXPECT_EQ(failures, 0);
}

/// taskset, cgroups' cpusets, mpirun --bind-to and numactl all show in the affinity.
TEST(ThreadPool, HasAThreadForEachCoreThatItMayUseAndKeepsItThere) {
  cpu_set_t all;
  ASSERT_EQ(sched_getaffinity(0, sizeof all, &all), 0);
  EXPECT_EQ(make_thread_pool(0)->threads(), CPU_COUNT(&all));
  int last = CPU_SETSIZE - 1;
  while (!CPU_ISSET(last, &all)) --last;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(last, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(make_thread_pool(0)->threads(), 1);
  std::atomic<int> elsewhere{0};
  make_thread_pool(3)->run(50, [&](std::int64_t) {
    if (sched_getcpu() != last) ++elsewhere;
  });
  EXPECT_EQ(elsewhere, 0);
  ASSERT_EQ(sched_setaffinity(0, sizeof all, &all), 0);
}

TEST(ThreadPool, RefusesImpossibleSizes) {
  EXPECT_THROW(make_thread_pool(-1), Error);
  EXPECT_THROW(make_thread_pool(5000), Error);
  EXPECT_GE(make_thread_pool(0)->threads(), 1);
}

}  // namespace
}  // namespace ringattn
