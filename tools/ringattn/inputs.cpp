// SPDX-License-Identifier: Apache-2.0
#include "inputs.h"

#include <array>
#include <functional>
#include <limits>

#include "dtype.h"
#include "input_shapes.h"
#include "io/tensor_file.h"
#include "ringattn/error.h"

namespace ringattn::tool {
namespace {

using Load = std::function<HostTensor(const std::string&)>;

HostTensor convert(HostTensor tensor, DType dtype) {
  if (tensor.dtype() == dtype) return tensor;
  HostTensor out(dtype, tensor.shape());
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    store(dtype, out.data(), i, load(tensor.dtype(), tensor.data(), i));
  }
  return out;
}

/// Int32 or int64 to Out, refusing values that do not fit.
template <class Out>
HostTensor to_integers(const std::string& name, const HostTensor& in, DType dtype,
                       const std::string& source) {
  HostTensor out(dtype, in.shape());
  for (std::int64_t i = 0; i < in.elements(); ++i) {
    const std::int64_t value =
        in.dtype() == DType::kInt64 ? in.as<std::int64_t>()[i] : in.as<std::int32_t>()[i];
    if (value < std::numeric_limits<Out>::min() || value > std::numeric_limits<Out>::max()) {
      refuse_tensor(name, "values that fit 32 bits", std::to_string(value), source);
    }
    out.as<Out>()[i] = static_cast<Out>(value);
  }
  return out;
}

Mask to_mask(const HostTensor& tensor) {
  const std::vector<std::int64_t>& shape = tensor.shape();
  const std::size_t last = shape.size() - 1;
  return Mask::dense({tensor.as<std::uint8_t>(), tensor.size_bytes()},
                     shape.size() == 3 ? shape[0] : 1, shape[last - 1], shape[last]);
}

Inputs load_inputs(const Headers& headers, const Load& load, const Settings& settings,
                   const std::string& source) {
  Inputs inputs;
  inputs.problem = check_headers(headers, settings, source);
  inputs.options = library_options(settings);
  for (const char* name : {"query", "key", "value", "dout"}) {
    if (!uses(headers, name, settings)) continue;
    inputs.tensors[name] = convert(load(name), inputs.problem.dtype);
  }
  for (const char* name : {"q_segment_ids", "kv_segment_ids"}) {
    if (!headers.contains(name)) continue;
    inputs.tensors[name] = to_integers<std::int32_t>(name, load(name), DType::kInt32, source);
  }
  for (const char* name : {"q_positions", "kv_positions"}) {
    if (!headers.contains(name)) continue;
    inputs.tensors[name] = to_integers<std::int64_t>(name, load(name), DType::kInt64, source);
  }
  if (headers.contains("softmax_aux")) inputs.tensors["softmax_aux"] = load("softmax_aux");
  if (headers.contains("mask")) inputs.options.mask = to_mask(load("mask"));
  inputs.options.segment_ids = inputs.find("q_segment_ids") || inputs.find("kv_segment_ids");
  inputs.options.explicit_positions = inputs.find("q_positions") != nullptr;
  return inputs;
}

}  // namespace

Inputs read_inputs(const std::string& path, const Settings& settings) {
  const TensorFile file(path);
  Headers headers;
  for (const auto& [name, entry] : file.entries()) headers[name] = {entry.dtype, entry.shape};
  return load_inputs(
      headers, [&](const std::string& name) { return file.read(name); }, settings, path);
}

Inputs make_inputs(TensorMap tensors, const Settings& settings, const std::string& source) {
  Headers headers;
  for (const auto& [name, tensor] : tensors) headers[name] = {tensor.dtype(), tensor.shape()};
  return load_inputs(
      headers, [&](const std::string& name) { return std::move(tensors.at(name)); }, settings,
      source);
}

}  // namespace ringattn::tool
