// SPDX-License-Identifier: Apache-2.0
#include "ring_pass.h"

#include "input_shapes.h"
#include "progress.h"
#include "ringattn/error.h"

namespace ringattn::tool {
namespace {

ConstTensorView view_of(const Inputs& inputs, const char* name) {
  const HostTensor* tensor = inputs.find(name);
  return tensor == nullptr ? ConstTensorView() : tensor->view();
}

}  // namespace

support::RingInputs ring_inputs(const Inputs& inputs) {
  support::RingInputs views;
  views.query = view_of(inputs, "query");
  views.key = view_of(inputs, "key");
  views.value = view_of(inputs, "value");
  views.q_segment_ids = view_of(inputs, "q_segment_ids");
  views.kv_segment_ids = view_of(inputs, "kv_segment_ids");
  views.q_positions = view_of(inputs, "q_positions");
  views.kv_positions = view_of(inputs, "kv_positions");
  views.sinks = view_of(inputs, "softmax_aux");
  views.dout = view_of(inputs, "dout");
  return views;
}

support::RingSettings ring_settings(const Settings& settings) {
  support::RingSettings ring;
  ring.ring = settings.ring;
  ring.backward = settings.backward;
  ring.lse = settings.lse || settings.backward;
  if (settings.grad_f32) ring.grad_dtype = DType::kFloat32;
  ring.timeout = settings.timeout;
  return ring;
}

void naming_source(const std::string& source, const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    const std::string message = error.what();
    if (!is_input(message.substr(0, message.find(':')))) throw;
    throw Error(error.code(), message + " (in " + source + ")");
  }
}

support::RingResult pass_through_ring(const Inputs& inputs, const Settings& settings,
                                      const std::string& source) {
  Progress progress(!settings.quiet);
  progress.set("forward ", 0, settings.ring);
  support::RingSettings ring = ring_settings(settings);
  ring.progress = [&](bool backward, int done) {
    // The last rank's forward begins the backward.
    const bool next = !backward && settings.backward && done == settings.ring;
    progress.set(backward || next ? "backward" : "forward ", next ? 0 : done, settings.ring);
  };
  support::RingResult result;
  naming_source(source, [&] {
    result = support::run_on_ring(inputs.problem, inputs.options, ring_inputs(inputs), ring);
  });
  return result;
}

}  // namespace ringattn::tool
