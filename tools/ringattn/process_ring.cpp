// SPDX-License-Identifier: Apache-2.0
#include "process_ring.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <vector>

#include "ringattn/error.h"
#include "support/rank_job.h"

namespace ringattn::tool {
namespace {

/// How a rank's work ended: empty if well.
using Words = std::array<char, 1024>;

template <std::size_t N>
std::array<char, N> to_words(const std::string& text) {
  std::array<char, N> words{};
  std::copy_n(text.data(), std::min(text.size(), N - 1), words.data());
  return words;
}

/// Where a rank runs: equal for ranks that share their cores.
struct Place {
  std::array<char, 256> host{};
  cpu_set_t cores{};

  friend bool operator==(const Place& a, const Place& b) {
    return a.host == b.host && CPU_EQUAL(&a.cores, &b.cores) != 0;
  }
};

}  // namespace

void use_process_ring(Settings& settings, Communicator& ring) {
  together(ring, [&] {
    if (!settings.given.contains("--ring") || settings.ring == ring.size()) return;
    throw Error(ErrorCode::kInvalidArgument, "--ring: expected the " + std::to_string(ring.size()) +
                                                 " processes that the launcher started, got " +
                                                 std::to_string(settings.ring));
  });
  settings.ring = ring.size();
  settings.given.insert("--ring");  // wins over a case's own
  settings.speaks = ring.rank() == 0;
  if (!settings.speaks) settings.quiet = true;  // no progress either
  if (settings.threads == 0) settings.threads = fair_threads(ring);
}

void together(Communicator& ring, const std::function<void()>& work) {
  std::exception_ptr own;
  std::string text;
  try {
    work();
  } catch (const std::exception& error) {
    own = std::current_exception();
    text = error.what();
    if (text.empty()) text = "an error without words";
  }
  const std::vector<Words> all =
      support::gather_all(ring, to_words<std::tuple_size_v<Words>>(text));
  const auto failed = [](const Words& words) { return words[0] != '\0'; };
  const auto first = std::find_if(all.begin(), all.end(), failed);
  if (first == all.end()) return;
  if (own) {
    const auto me = all.begin() + ring.rank();
    throw Agreed(own, std::find(all.begin(), me, *me) != me);
  }
  const std::string message =
      "rank " + std::to_string(first - all.begin()) + " failed: " + first->data();
  throw Agreed(std::make_exception_ptr(Error(ErrorCode::kCommunication, message)), false);
}

std::string from_first(Communicator& ring, const std::string& text) {
  return support::gather_all(ring, to_words<4096>(text))[0].data();
}

bool on_one_machine(Communicator& ring) {
  std::string machine;  // since its last start
  std::ifstream("/proc/sys/kernel/random/boot_id") >> machine;
  std::array<char, 64> numbers{};  // the namespace of process numbers
  if (machine.empty() || ::readlink("/proc/self/ns/pid", numbers.data(), numbers.size() - 1) < 0) {
    machine = "unknown, of rank " + std::to_string(ring.rank());
  }
  const auto all = support::gather_all(ring, to_words<256>(machine + numbers.data()));
  return std::count(all.begin(), all.end(), all[0]) == ring.size();
}

int fair_threads(Communicator& ring) {
  Place own;
  ::gethostname(own.host.data(), own.host.size() - 1);
  ::sched_getaffinity(0, sizeof own.cores, &own.cores);
  const std::vector<Place> all = support::gather_all(ring, own);
  const auto sharing = static_cast<int>(std::count(all.begin(), all.end(), own));
  return std::max(1, CPU_COUNT(&own.cores) / sharing);
}

}  // namespace ringattn::tool
