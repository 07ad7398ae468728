// SPDX-License-Identifier: Apache-2.0
// Rings over MPI: one rank per process, on one machine or many. Link ringattn::mpi. This header
// includes no MPI; include <mpi.h> of the MPI that ringattn was built with beside it.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "ringattn/communicator.h"

namespace ringattn {

struct MpiOptions {
  /// How long a peer may be silent before it counts as lost; longer than any rank computes on one
  /// hop. Found out and told to every rank within one second more.
  std::chrono::milliseconds timeout = kDefaultTimeout;

  /// Bytes of the largest MPI message; longer transfers go in several. 1 to 2^31 - 1.
  std::size_t largest_message = std::size_t{64} << 20;
};

/// For mpi_communicator().
std::unique_ptr<Communicator> make_mpi_communicator(const void* comm, std::size_t size,
                                                    const MpiOptions& options);

/// A ring of the processes of `comm`, an MPI_Comm, ranks as there. Collective. The communicator is
/// duplicated: ringattn's messages never meet the application's, `comm` may be freed, and any
/// number of rings may be made, of sub-communicators too (MPI_Comm_split). MPI must be initialised;
/// with less than MPI_THREAD_SERIALIZED all calls must come from the thread that did so. Free the
/// ring before MPI_Finalize. Throws kInvalidArgument for what is no intra-communicator, and
/// kCommunication.
///
/// After kCommunication because a rank was lost, MPI may still write to memory that was on its way,
/// and MPI_Finalize may wait for ever: report, and end the process with _exit() or MPI_Abort().
template <class MpiComm>
std::unique_ptr<Communicator> mpi_communicator(MpiComm comm, const MpiOptions& options = {}) {
  // NOLINTNEXTLINE(bugprone-sizeof-expression): the handle itself, which may be a pointer
  return make_mpi_communicator(&comm, sizeof(MpiComm), options);
}

/// For programs that use MPI through ringattn alone. One per process.
class MpiProcess {
 public:
  /// MPI_Init_thread, and a ring of all processes that the launcher started.
  explicit MpiProcess(const MpiOptions& options = {});

  /// Without end(), MPI is left as it is: then leave by _exit(), so that nothing waits for peers.
  ~MpiProcess();
  MpiProcess(const MpiProcess&) = delete;
  MpiProcess& operator=(const MpiProcess&) = delete;

  Communicator& ring() { return *ring_; }

  /// Waits until every rank has come here, frees the ring and calls MPI_Finalize. Throws
  /// kCommunication for a rank that does not come; if MPI_Finalize itself lasts longer than the
  /// timeout or ten seconds, the process ends with _exit(4).
  void end();

 private:
  MpiOptions options_;
  std::unique_ptr<Communicator> ring_;
};

/// "Open MPI v4.1.4, ..." or "MPICH Version: ...": the one that is linked.
std::string mpi_library();

}  // namespace ringattn
