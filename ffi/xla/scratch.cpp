// SPDX-License-Identifier: Apache-2.0
#include "xla/scratch.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

namespace ringattn::ffi {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Kept {
  std::mutex mutex;
  std::vector<std::span<std::byte>> buffers;
};

/// Never destroyed: threads of XLA may outlive static objects.
Kept& kept() {
  static Kept& all = *new Kept;
  return all;
}

}  // namespace

Scratch::Scratch(std::size_t bytes) {
  {
    Kept& all = kept();
    const std::lock_guard lock(all.mutex);
    const auto largest =
        std::max_element(all.buffers.begin(), all.buffers.end(),
                         [](const auto& a, const auto& b) { return a.size() < b.size(); });
    if (largest != all.buffers.end()) {
      memory_ = *largest;
      all.buffers.erase(largest);
    }
  }
  if (memory_.size() >= bytes && memory_.data() != nullptr) return;
  if (memory_.data() != nullptr) ::operator delete(memory_.data(), kAlignment);
  memory_ = {};
  const std::size_t size = std::max<std::size_t>(bytes, 64);
  memory_ = {static_cast<std::byte*>(::operator new(size, kAlignment)), size};
}

Scratch::~Scratch() {
  Kept& all = kept();
  const std::lock_guard lock(all.mutex);
  all.buffers.push_back(memory_);
}

}  // namespace ringattn::ffi
