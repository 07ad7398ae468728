// SPDX-License-Identifier: Apache-2.0
// Starts programs under mpirun as users do, and looks at what is left.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace ringattn::testing {

/// The MPIs that the tests were built with: "openmpi", "mpich".
std::vector<std::string> flavours();

struct Launch {
  int ranks = 2;
  std::function<bool()> enough{};  // once true, the job is killed, too
  bool cleanup = true;             // false: the launcher leaves the survivors of a lost rank alone
  std::vector<std::pair<std::string, std::string>> environment{};
  int seconds = 120;  // then the whole job is killed, and `code` is -1
};

struct Launched {
  int code = -1;
  std::string out;  // of stdout and stderr together
};

/// mpirun of `flavour`: as root and with more ranks than cores, if need be.
Launched launch(const std::string& flavour, const Launch& how,
                const std::vector<std::string>& command);

/// Is there a process of that number, and not only its exit code?
bool alive(int pid);

/// Of all processes whose command line holds `word`.
std::vector<int> pids_with(const std::string& word);

/// The worker of tests/mpi that was built for `flavour`.
std::string worker(const std::string& flavour);

/// The tool that was built for it.
std::string tool(const std::string& flavour);

}  // namespace ringattn::testing
