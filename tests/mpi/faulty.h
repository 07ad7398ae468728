// SPDX-License-Identifier: Apache-2.0
// A ring on which one rank is lost, at a given verb and in a given way.
#pragma once

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include <unistd.h>

#include "ringattn/communicator.h"

namespace ringattn::testing {

/// One clock for all processes of a machine.
inline std::int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// A line of the record that the test reads. Complete or not there.
inline void write_line(const std::string& path, const std::string& text) {
  std::ofstream(path + ".part") << text << std::endl;
  std::rename((path + ".part").c_str(), path.c_str());
}

/// "CULPRIT:VERB:KIND"; KIND is kill, stop, exit or throw.
struct Fault {
  int culprit = -1;
  int verb = -1;
  std::string kind;

  static Fault parse(const std::string& text) {
    const std::size_t colon = text.find(':');
    const std::size_t second = text.find(':', colon + 1);
    return {std::stoi(text.substr(0, colon)), std::stoi(text.substr(colon + 1, second - colon - 1)),
            text.substr(second + 1)};
  }

  void happen() const {
    if (kind == "kill") ::kill(::getpid(), SIGKILL);
    if (kind == "stop") ::kill(::getpid(), SIGSTOP);
    if (kind == "exit") ::_exit(0);
    if (kind == "throw") throw std::runtime_error("the cable was cut");
  }
};

/// Counts shift and wait, and lets the fault happen at one of them.
class Faulty final : public Communicator {
 public:
  explicit Faulty(Communicator& inner, Fault fault = {}, std::function<void()> before = {})
      : inner_(inner), fault_(std::move(fault)), before_(std::move(before)) {}

  int rank() const noexcept override { return inner_.rank(); }
  int size() const noexcept override { return inner_.size(); }
  std::string_view name() const noexcept override { return inner_.name(); }
  bool hands_over() const noexcept override { return inner_.hands_over(); }
  Ticket shift(std::span<const std::byte> out, std::span<std::byte> in, std::size_t expected,
               int offset, Stream stream, Cargo cargo) override {
    if (!out.empty()) last_send_ = verbs_;
    count();
    return inner_.shift(out, in, expected, offset, stream, cargo);
  }
  std::span<const std::byte> wait(Ticket ticket, Stream stream) override {
    count();
    return inner_.wait(ticket, stream);
  }
  void finish(Ticket ticket, Stream stream) override {
    began_ = now_ms();
    inner_.finish(ticket, stream);
  }
  void progress() noexcept override {
    if (std::this_thread::get_id() != owner_) strangers_ = true;
    inner_.progress();
  }
  void abort(std::string_view reason) noexcept override { inner_.abort(reason); }

  int verbs() const { return verbs_; }
  int last_send() const { return last_send_; }
  std::int64_t began() const { return began_; }  // the latest verb
  bool strangers() const { return strangers_; }  // did another thread call progress()?

 private:
  void count() {
    began_ = now_ms();
    if (verbs_++ != fault_.verb || rank() != fault_.culprit) return;
    if (before_) before_();
    fault_.happen();
  }

  Communicator& inner_;
  Fault fault_;
  std::function<void()> before_;
  int verbs_ = 0;
  int last_send_ = 0;
  std::int64_t began_ = 0;
  std::thread::id owner_ = std::this_thread::get_id();
  std::atomic<bool> strangers_ = false;
};

}  // namespace ringattn::testing
