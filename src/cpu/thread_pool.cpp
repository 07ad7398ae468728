// SPDX-License-Identifier: Apache-2.0
// A pool that several ranks of a ring may share: background threads, and at most one caller at a
// time that helps with its own work, so that never more threads run than were asked for.
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <list>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "ringattn/error.h"
#include "ringattn/executor.h"

namespace ringattn {
namespace {

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    const int cores = CPU_COUNT(&set);
    if (cores > 0) return cores;
  }
  const unsigned cores = std::thread::hardware_concurrency();
  return cores == 0 ? 1 : static_cast<int>(cores);
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Long enough to catch the next pass of a loop of small calls (some 20 us), short enough not to
/// be noticed in an idle process.
constexpr int kSpins = 1500;

class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int threads) {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this] { work(); });
  }

  ~ThreadPool() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      posted_.fetch_add(1);
    }
    posted_work_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const noexcept override { return static_cast<int>(workers_.size()) + 1; }

  void run(std::int64_t n, TaskRef task) override {
    if (n <= 0) return;
    Job job{task, n, 0, 0, {}};
    std::unique_lock lock(mutex_);
    const auto place = jobs_.insert(jobs_.end(), &job);
    posted_.fetch_add(1);
    if ((n > 1 || helping_) && sleeping_ > 0) posted_work_.notify_all();
    while (job.done < n) {
      if (!helping_ && job.next < n) {
        helping_ = true;
        help(job, lock);
        helping_ = false;
        continue;
      }
      pass_on();
      job.changed.wait(lock);
    }
    pass_on();
    jobs_.erase(place);
  }

 private:
  struct Job {
    TaskRef task;
    std::int64_t n;
    std::int64_t next;
    std::int64_t done;
    std::condition_variable changed;  // its caller waits here, and nobody else
  };

  /// Runs tasks of `job` until none is left to start. Called and left with the lock held.
  void help(Job& job, std::unique_lock<std::mutex>& lock) {
    while (job.next < job.n) {
      const std::int64_t i = job.next++;
      lock.unlock();
      job.task(i);
      lock.lock();
      if (++job.done == job.n) job.changed.notify_one();
    }
  }

  /// A caller that does not help lets the first one that can.
  void pass_on() {
    if (helping_) return;
    if (Job* job = startable()) job->changed.notify_one();
  }

  Job* startable() {
    for (Job* job : jobs_) {
      if (job->next < job->n) return job;
    }
    return nullptr;
  }

  void work() {
    std::uint64_t seen = posted_.load();
    std::unique_lock lock(mutex_);
    while (!stop_) {
      if (Job* job = startable()) {
        help(*job, lock);
        continue;
      }
      seen = posted_.load();
      lock.unlock();
      for (int i = 0; i < kSpins && posted_.load(std::memory_order_relaxed) == seen; ++i) relax();
      lock.lock();
      ++sleeping_;
      posted_work_.wait(lock, [&] { return stop_ || startable() != nullptr; });
      --sleeping_;
    }
  }

  std::mutex mutex_;
  std::condition_variable posted_work_;  // workers wait here
  int sleeping_ = 0;                     // that many
  std::list<Job*> jobs_;                 // in the order they came
  std::vector<std::thread> workers_;
  std::atomic<std::uint64_t> posted_{0};
  bool helping_ = false;  // a caller runs its own tasks
  bool stop_ = false;
};

}  // namespace

std::shared_ptr<Executor> make_thread_pool(int threads) {
  if (threads < 0 || threads > 4096) {
    throw Error(ErrorCode::kInvalidArgument,
                "threads: expected 0 (every core) to 4096, got " + std::to_string(threads));
  }
  return std::make_shared<ThreadPool>(threads == 0 ? available_cores() : threads);
}

std::shared_ptr<Executor> default_executor() {
  static const std::shared_ptr<Executor> pool = make_thread_pool();
  return pool;
}

}  // namespace ringattn
