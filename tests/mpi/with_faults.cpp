// SPDX-License-Identifier: Apache-2.0
// The tool's ring over MPI, on which RINGATTN_TEST_FAULT (see faulty.h) happens; with
// RINGATTN_TEST_VERBS, rank 0 writes how many verbs there were into that file.
#include <cstdlib>

#include "faulty.h"
#include "process_ring.h"
#include "ringattn/mpi.h"

namespace ringattn::tool {
namespace {

testing::Fault fault() {
  const char* text = std::getenv("RINGATTN_TEST_FAULT");
  return text == nullptr ? testing::Fault() : testing::Fault::parse(text);
}

class FaultyRing final : public ProcessRing {
 public:
  explicit FaultyRing(std::chrono::milliseconds timeout)
      : process_({.timeout = timeout}), faulty_(process_.ring(), fault()) {}
  Communicator& ring() override { return faulty_; }
  void end() override {
    const char* path = std::getenv("RINGATTN_TEST_VERBS");
    if (path != nullptr && faulty_.rank() == 0) {
      testing::write_line(path, std::to_string(faulty_.verbs()));
    }
    process_.end();
  }

 private:
  MpiProcess process_;
  testing::Faulty faulty_;
};

}  // namespace

MpiBuild mpi_build() { return {mpi_library(), ""}; }

std::unique_ptr<ProcessRing> start_process_ring(std::chrono::milliseconds timeout) {
  return std::make_unique<FaultyRing>(timeout);
}

}  // namespace ringattn::tool
