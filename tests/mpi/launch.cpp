// SPDX-License-Identifier: Apache-2.0
#include "mpi/launch.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "io/io_testing.h"

namespace ringattn::testing {

std::vector<std::string> flavours() {
  std::istringstream list(RINGATTN_MPI_FLAVOURS);
  std::vector<std::string> all;
  for (std::string name; std::getline(list, name, ',');) all.push_back(name);
  return all;
}

namespace {

/// What the kernel says of a process that may end meanwhile: streams would throw then.
std::string read_process(const std::string& path) {
  char text[4096];
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const ssize_t length = file < 0 ? -1 : ::read(file, text, sizeof text);
  if (file >= 0) ::close(file);
  return length <= 0 ? std::string() : std::string(text, static_cast<std::size_t>(length));
}

}  // namespace

bool alive(int pid) {
  const std::string status = read_process("/proc/" + std::to_string(pid) + "/stat");
  const std::size_t state = status.rfind(')');  // "PID (NAME) S ..."
  return state != std::string::npos && state + 2 < status.size() && status[state + 2] != 'Z';
}

std::vector<int> pids_with(const std::string& word) {
  std::vector<int> pids;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    const int pid = std::atoi(entry.path().filename().c_str());
    if (pid <= 0 || pid == ::getpid() || !alive(pid)) continue;
    if (read_process((entry.path() / "cmdline").string()).find(word) != std::string::npos)
      pids.push_back(pid);
  }
  return pids;
}

std::string worker(const std::string& flavour) {
  return std::string(RINGATTN_MPI_BIN) + "/mpi_worker_" + flavour;
}

std::string tool(const std::string& flavour) {
  return std::string(RINGATTN_MPI_BIN) + "/ringattn_" + flavour;
}

Launched launch(const std::string& flavour, const Launch& how,
                const std::vector<std::string>& command) {
  std::vector<std::string> words = {"mpirun." + flavour, "-n", std::to_string(how.ranks)};
  if (flavour == "openmpi") {
    words.insert(words.end(), {"--oversubscribe", "--bind-to", "none"});
    if (!how.cleanup) words.push_back("--enable-recovery");
  } else if (!how.cleanup) {
    words.push_back("-disable-auto-cleanup");
  }
  words.insert(words.end(), command.begin(), command.end());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);

  const TempFolder folder;
  const std::string log = folder / "log";
  const pid_t child = ::fork();
  if (child == 0) {
    ::setpgid(0, 0);
    ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    for (const auto& [name, value] : how.environment) ::setenv(name.c_str(), value.c_str(), 1);
    const int file = ::open(log.c_str(), O_WRONLY | O_CREAT, 0600);
    ::dup2(::open("/dev/null", O_RDONLY), 0);
    ::dup2(file, 1);
    ::dup2(file, 2);
    ::execvp(pointers[0], pointers.data());
    ::_exit(127);
  }
  Launched done;
  int status = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(how.seconds);
  pid_t ended = 0;
  while ((ended = ::waitpid(child, &status, WNOHANG)) == 0 &&
         std::chrono::steady_clock::now() < end && !(how.enough && how.enough())) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (ended == 0) {
    ::kill(-child, SIGKILL);
    ::waitpid(child, &status, 0);
  } else if (WIFEXITED(status)) {
    done.code = WEXITSTATUS(status);
  } else {
    done.code = 128 + WTERMSIG(status);
  }
  std::ostringstream text;
  text << std::ifstream(log).rdbuf();
  done.out = text.str();
  return done;
}

}  // namespace ringattn::testing
