// SPDX-License-Identifier: Apache-2.0
// A pool that several ranks of a ring may share: background threads, and callers that help as long
// as no more threads run than were asked for.
#include <sched.h>

#include <algorithm>
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
  explicit ThreadPool(int threads) : threads_(threads) {
    for (int t = 0; t < threads; ++t) workers_.emplace_back([this] { work(); });
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

  int threads() const noexcept override { return threads_; }

  void run(std::int64_t n, TaskRef task) override {
    if (n <= 0) return;
    Job job{task, n, 0, 0, {}};
    std::unique_lock lock(mutex_);
    const auto place = jobs_.insert(jobs_.end(), &job);
    posted_.fetch_add(1);
    const std::int64_t free = threads_ - running_;
    for (std::int64_t more = std::min({n, free, sleeping_ + 1}); more > 1; --more) {
      posted_work_.notify_one();
    }
    help(job, lock);
    if (job.done < n && running_ < threads_) {  // otherwise somebody needs this core
      spin(lock, [&] { return job.done == n; });
      help(job, lock);
    }
    job.changed.wait(lock, [&] { return job.done == n; });
    jobs_.erase(place);
  }

 private:
  struct Job {
    TaskRef task;
    std::int64_t n;
    std::int64_t next;
    std::atomic<std::int64_t> done;
    std::condition_variable changed;  // its caller waits here for the end, and nobody else

    std::int64_t at_work() const { return next - done; }
  };

  /// Runs the next task of `job`. Called and left with the lock held.
  static void run_next(Job& job, std::unique_lock<std::mutex>& lock) {
    const std::int64_t i = job.next++;
    lock.unlock();
    job.task(i);
    lock.lock();
    if (++job.done == job.n) job.changed.notify_one();
  }

  /// A caller runs its own tasks, then anybody's for as long as its own are under way elsewhere.
  /// Whatever is left then goes to a thread of the pool, which stays where it runs: callers that
  /// take turns would leave cores idle while they wake up.
  void help(Job& own, std::unique_lock<std::mutex>& lock) {
    if (running_ == threads_) return;
    ++running_;
    while (own.done < own.n) {
      Job* job = own.next < own.n ? &own : startable();
      if (job == nullptr) break;
      run_next(*job, lock);
    }
    if (startable() == nullptr) {
      --running_;
      return;
    }
    ++handed_over_;
    posted_.fetch_add(1);
    posted_work_.notify_one();
  }

  /// Of jobs that have tasks to start the one that fewest work on, the oldest of these: threads
  /// apart share no caches and wait for nothing of each other's.
  Job* startable() {
    Job* best = nullptr;
    for (Job* job : jobs_) {
      if (job->next < job->n && (best == nullptr || job->at_work() < best->at_work())) best = job;
    }
    return best;
  }

  /// Waits a little for a new job, or `done`. Called and left with the lock held.
  template <class Done>
  void spin(std::unique_lock<std::mutex>& lock, const Done& done) {
    const std::uint64_t seen = posted_.load();
    lock.unlock();
    for (int i = 0; i < kSpins && posted_.load(std::memory_order_relaxed) == seen && !done(); ++i) {
      relax();
    }
    lock.lock();
  }

  void work() {
    std::unique_lock lock(mutex_);
    const auto called = [&] {
      return stop_ || handed_over_ > 0 || (running_ < threads_ && startable() != nullptr);
    };
    for (;;) {
      if (!called()) spin(lock, [] { return false; });
      ++sleeping_;
      posted_work_.wait(lock, called);
      --sleeping_;
      if (stop_) return;
      if (handed_over_ > 0) {
        --handed_over_;
      } else {
        ++running_;
      }
      while (Job* job = startable()) run_next(*job, lock);
      --running_;
    }
  }

  const int threads_;
  std::mutex mutex_;
  std::condition_variable posted_work_;  // workers wait here
  std::int64_t sleeping_ = 0;            // that many
  std::int64_t running_ = 0;             // threads that run tasks, callers too: at most threads_
  std::int64_t handed_over_ = 0;         // of these, places that a caller left to a worker
  std::list<Job*> jobs_;                 // in the order they came
  std::atomic<std::uint64_t> posted_{0};
  bool stop_ = false;
  std::vector<std::thread> workers_;  // last: they use all of the above
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
