// SPDX-License-Identifier: Apache-2.0
#include "worker.h"

#include <unistd.h>

#include <cstdio>
#include <exception>
#include <map>

int main(int argc, char** argv) {
  using namespace ringattn::testing;  // NOLINT(google-build-using-namespace)
  const std::map<std::string, int (*)(const Words&)> scenarios = {
      {"same", same_bits},    {"storm", storm},       {"beside", beside}, {"huge", huge},
      {"mismatch", mismatch}, {"refusals", refusals}, {"faults", faults}, {"verbs", count_verbs},
      {"endless", endless},   {"stale", stale}};
  if (argc < 2 || !scenarios.contains(argv[1])) {
    std::fprintf(stderr, "usage: %s SCENARIO [WORD...]\n", argv[0]);
    return 2;
  }
  int level = 0;
  // The least that ringattn asks for.
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SINGLE, &level);
  int code = 1;
  try {
    code = scenarios.at(argv[1])({argv + 2, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "worker: %s\n", error.what());
    std::fflush(nullptr);
    ::_exit(4);  // MPI_Finalize would wait for the others
  }
  MPI_Finalize();
  return code;
}
