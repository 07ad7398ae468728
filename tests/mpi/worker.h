// SPDX-License-Identifier: Apache-2.0
// The program that the tests start under mpirun: one scenario per word on its command line.
#pragma once

#include <mpi.h>

#include <string>
#include <vector>

namespace ringattn::testing {

using Words = std::vector<std::string>;

// Each returns the exit code, 0 if all is well, and says what is not on stderr.
int same_bits(const Words& cases);    // as on a ring of threads
int storm(const Words& words);        // SEED ROUNDS: thousands of short rings
int beside(const Words& words);       // sub-communicators, application traffic
int huge(const Words& words);         // BYTES: one transfer of so many
int stale(const Words& words);        // WHAT rank 0 says wrongly of a block
int mismatch(const Words& words);     // WHAT differs on rank 1
int refusals(const Words& words);     // communicators that are none
int faults(const Words& words);       // see worker_faults.cpp
int endless(const Words& words);      // DIR TIMEOUT_MS: until a rank is lost
int count_verbs(const Words& words);  // DIR N

}  // namespace ringattn::testing
