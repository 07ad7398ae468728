// SPDX-License-Identifier: Apache-2.0
// The ring of processes that a launcher has started, as far as the tool knows it. A program links
// mpi/with_mpi.cpp or mpi/without_mpi.cpp; all else of the tool is the same.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <string>

#include "options.h"
#include "ringattn/communicator.h"

namespace ringattn::tool {

/// This process's place in the ring.
class ProcessRing {
 public:
  virtual ~ProcessRing() = default;
  virtual Communicator& ring() = 0;

  /// Every rank comes here, or none.
  virtual void end() = 0;
};

/// What this program was linked with.
struct MpiBuild {
  std::string library;  // as it calls itself; empty: none,
  std::string reason;   // and why not
};
MpiBuild mpi_build();

/// Joins the other processes. Throws kUnsupported where there is no MPI.
std::unique_ptr<ProcessRing> start_process_ring(std::chrono::milliseconds timeout);

/// A failure that every rank knows of, so that all can end in order.
class Agreed : public std::exception {
 public:
  /// `cause`: what this rank reports; `said`: rank 0 or another lower rank reports the very same.
  // NOLINTNEXTLINE(bugprone-throw-keyword-missing): a member, not an exception to be thrown
  Agreed(std::exception_ptr cause, bool said) : cause_(std::move(cause)), said_(said) {}
  const char* what() const noexcept override { return "a failure that every rank knows of"; }
  const std::exception_ptr& cause() const { return cause_; }
  bool said() const { return said_; }

 private:
  std::exception_ptr cause_;
  bool said_;
};

/// The launcher says how many ranks there are: puts that, and fair_threads() if no number of
/// threads was given, into the settings, and silences all ranks but the first. Throws Agreed if
/// --ring says otherwise.
void use_process_ring(Settings& settings, Communicator& ring);

/// Runs `work`, which must not use the ring, on every rank. If it throws somewhere, Agreed is
/// thrown everywhere: with the rank's own error where there was one, elsewhere with kCommunication
/// and the words of the lowest rank that failed.
void together(Communicator& ring, const std::function<void()>& work);

/// Rank 0's text, everywhere; up to 4,095 bytes.
std::string from_first(Communicator& ring, const std::string& text);

/// Do all ranks run on one machine, and know its processes by the same numbers?
bool on_one_machine(Communicator& ring);

/// Threads for this rank if nobody says how many: the cores that it may run on, shared with the
/// other ranks that may run on the very same ones.
int fair_threads(Communicator& ring);

}  // namespace ringattn::tool
