// SPDX-License-Identifier: Apache-2.0
// `ringattn info`: what this build and this machine can do, and why it cannot do the rest.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "commands.h"
#include "gpus.h"
#include "process_ring.h"
#include "ringattn/attention.h"
#include "ringattn/version.h"

namespace ringattn::tool {
namespace {

/// Communicators that this version does not have, by their names on the command line.
struct Absent {
  const char* name;
  const char* reason;
};
constexpr Absent kAbsentCommunicators[] = {{"nccl", "this build has no NCCL communicator"},
                                           {"peer", "this build has no peer-to-peer communicator"}};

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown";
}

nlohmann::json build_json() {
#ifdef __clang__
  const std::string compiler = "clang " __clang_version__;
#else
  const std::string compiler = "gcc " __VERSION__;
#endif
#ifdef NDEBUG
  const bool assertions = false;
#else
  const bool assertions = true;
#endif
  return {{"compiler", compiler}, {"assertions", assertions}, {"cuda", built_with_cuda()}};
}

nlohmann::json info_json() {
  nlohmann::json info = {{"version", RINGATTN_VERSION}, {"build", build_json()}};
  info["backends"] = nlohmann::json::array();
  for (const BackendInfo& backend : backends()) {
    info["backends"].push_back({{"name", backend.name},
                                {"available", backend.available},
                                {"reason", backend.reason},
                                {"instruction_sets", backend.instruction_sets}});
  }
  info["devices"] = {
      {{"kind", "cpu"}, {"name", cpu_model()}, {"cores", default_executor()->threads()}}};
  for (const nlohmann::json& gpu : gpus_json()) info["devices"].push_back(gpu);
  const MpiBuild mpi = mpi_build();
  info["communicators"] = {{{"name", "local"}, {"available", true}, {"reason", ""}},
                           {{"name", "mpi"},
                            {"available", !mpi.library.empty()},
                            {"reason", mpi.reason},
                            {"library", mpi.library}}};
  for (const Absent& absent : kAbsentCommunicators) {
    info["communicators"].push_back(
        {{"name", absent.name}, {"available", false}, {"reason", absent.reason}});
  }
  return info;
}

std::string availability(const nlohmann::json& part) {
  if (!part["available"]) return "absent: " + part["reason"].get<std::string>();
  std::string text = "available";
  if (part.contains("library")) return text + " (" + part["library"].get<std::string>() + ")";
  if (!part.contains("instruction_sets") || part["instruction_sets"].empty()) return text;
  const auto sets = part["instruction_sets"].get<std::vector<std::string>>();
  return text + fmt::format(" ({})", fmt::join(sets, ", "));
}

void print_text(const nlohmann::json& info) {
  fmt::print("ringattn {}\nbuild: {}, assertions {}\n", info["version"].get<std::string>(),
             info["build"]["compiler"].get<std::string>(),
             info["build"]["assertions"] ? "on" : "off");
  for (const auto& device : info["devices"]) {
    if (device["kind"] == "cpu") {
      fmt::print("device: {}, {} cores for this process\n", device["name"].get<std::string>(),
                 device["cores"].get<int>());
    } else {
      fmt::print("device: {}, {}, {:.0f} GiB, driver {}\n", device["name"].get<std::string>(),
                 device["architecture"].get<std::string>(),
                 device["memory_bytes"].get<double>() / (1 << 30),
                 device["driver"].get<std::string>());
    }
  }
  for (const char* kind : {"backends", "communicators"}) {
    fmt::print("{}:\n", kind);
    for (const auto& part : info[kind]) {
      fmt::print("  {:<10} {}\n", part["name"].get<std::string>(), availability(part));
    }
  }
}

}  // namespace

int info_command(const Settings& settings) {
  const nlohmann::json info = info_json();
  if (settings.json) {
    fmt::print("{}\n", info.dump());
  } else {
    print_text(info);
  }
  return 0;
}

}  // namespace ringattn::tool
