// SPDX-License-Identifier: Apache-2.0
#include "signals.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <thread>

#include "io/atomic_output.h"

namespace ringattn::tool {
namespace {

/// Waits in a thread of its own, where, unlike in a handler, everything may be called.
[[noreturn]] void wait_and_end(sigset_t signals) {
  int number = 0;
  while (::sigwait(&signals, &number) != 0) {
  }
  remove_temporaries_before_exit();
  ::signal(number, SIG_DFL);
  ::pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  ::kill(::getpid(), number);  // so that the parent sees how it ended
  for (;;) ::pause();
}

}  // namespace

void remove_temporaries_on_signals() {
  ::signal(SIGXFSZ, SIG_IGN);
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action {};
    ::sigaction(number, nullptr, &action);
    // Whoever started us with a signal ignored (nohup) wants it to stay so.
    if (action.sa_handler != SIG_IGN) ::sigaddset(&signals, number);
  }
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // every later thread inherits it
  std::thread(wait_and_end, signals).detach();
}

}  // namespace ringattn::tool
