// SPDX-License-Identifier: Apache-2.0
// The tool's ring of processes where there is an MPI.
#include "process_ring.h"
#include "ringattn/mpi.h"

namespace ringattn::tool {
namespace {

class MpiRing final : public ProcessRing {
 public:
  explicit MpiRing(std::chrono::milliseconds timeout) : process_({.timeout = timeout}) {}
  Communicator& ring() override { return process_.ring(); }
  void end() override { process_.end(); }

 private:
  MpiProcess process_;
};

}  // namespace

MpiBuild mpi_build() { return {mpi_library(), ""}; }

std::unique_ptr<ProcessRing> start_process_ring(std::chrono::milliseconds timeout) {
  return std::make_unique<MpiRing>(timeout);
}

}  // namespace ringattn::tool
