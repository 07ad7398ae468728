// SPDX-License-Identifier: Apache-2.0
// The tool's ring of processes where there is no MPI: why not.
#include "process_ring.h"
#include "ringattn/error.h"

namespace ringattn::tool {

MpiBuild mpi_build() { return {"", "this tool was built without MPI (CMake option RINGATTN_MPI)"}; }

std::unique_ptr<ProcessRing> start_process_ring(std::chrono::milliseconds) {
  throw Error(ErrorCode::kUnsupported, "--communicator mpi: " + mpi_build().reason);
}

}  // namespace ringattn::tool
