// SPDX-License-Identifier: Apache-2.0
// `ringattn run`: from a file to a file over a ring.
#include <fmt/format.h>

#include "commands.h"
#include "io/tensor_file.h"
#include "progress.h"
#include "report.h"
#include "ring_pass.h"
#include "run_rows.h"

namespace ringattn::tool {
namespace {

/// Moves results out; nothing but what was asked for.
TensorMap outputs(support::RingResult& result, const Settings& settings, bool sinks) {
  TensorMap out;
  out["out"] = std::move(result.out);
  if (settings.lse || settings.backward) out["lse"] = std::move(result.lse);
  if (settings.backward) {
    out["dquery"] = std::move(result.dquery);
    out["dkey"] = std::move(result.dkey);
    out["dvalue"] = std::move(result.dvalue);
    if (sinks) out["dsoftmax_aux"] = std::move(result.dsinks);
  }
  return out;
}

}  // namespace

int run_command(const Settings& settings, Communicator* ring) {
  if (ring != nullptr) return run_rows(settings, *ring);
  check_writable(settings.output);
  const std::string& source = settings.inputs.front();
  const Inputs inputs = read_inputs(source, settings);
  support::RingResult result = pass_through_ring(inputs, settings, source);
  const nlohmann::json json = report_json(settings, inputs, result);
  const std::string text = report_text(settings, inputs, result);
  write_tensors(settings.output, outputs(result, settings, inputs.find("softmax_aux") != nullptr));
  if (settings.json) {
    fmt::print("{}\n", json.dump());
  } else if (!settings.quiet) {
    fmt::print("{}wrote {}\n", text, settings.output);
  }
  return 0;
}

}  // namespace ringattn::tool
