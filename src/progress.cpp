// SPDX-License-Identifier: Apache-2.0
#include "progress.h"

#include <thread>
#include <utility>

namespace ringattn {
namespace {

class ProgressingExecutor final : public Executor {
 public:
  ProgressingExecutor(Communicator& ring, std::shared_ptr<Executor> inner)
      : ring_(ring), inner_(std::move(inner)) {}

  int threads() const noexcept override { return inner_->threads(); }

  void run(std::int64_t n, TaskRef task) override {
    const std::thread::id caller = std::this_thread::get_id();
    const auto and_progress = [&](std::int64_t i) {
      task(i);
      if (std::this_thread::get_id() == caller) ring_.progress();
    };
    inner_->run(n, and_progress);
  }

 private:
  Communicator& ring_;
  std::shared_ptr<Executor> inner_;
};

}  // namespace

std::shared_ptr<Executor> with_progress(Communicator& ring, std::shared_ptr<Executor> executor) {
  if (executor == nullptr) executor = default_executor();
  if (ring.hands_over()) return executor;
  return std::make_shared<ProgressingExecutor>(ring, std::move(executor));
}

}  // namespace ringattn
