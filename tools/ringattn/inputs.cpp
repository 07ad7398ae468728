// SPDX-License-Identifier: Apache-2.0
#include "inputs.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>

#include "dtype.h"
#include "input_shapes.h"
#include "io/tensor_file.h"
#include "ringattn/error.h"

namespace ringattn::tool {
namespace {

using Load = std::function<HostTensor(const std::string&)>;
using LoadMask = std::function<Mask()>;

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

/// Of the tensor `mask`: [Sq, Sk] or [H, Sq, Sk].
struct MaskShape {
  explicit MaskShape(const std::vector<std::int64_t>& shape)
      : per_head(shape.size() == 3),
        heads(per_head ? shape[0] : 1),
        queries(shape[shape.size() - 2]),
        keys(shape[shape.size() - 1]) {}
  bool per_head;
  std::int64_t heads, queries, keys;
};

Mask to_mask(const HostTensor& tensor) {
  const MaskShape shape(tensor.shape());
  return Mask::dense({tensor.as<std::uint8_t>(), tensor.size_bytes()}, shape.heads, shape.queries,
                     shape.keys);
}

/// A mask that fetches rows as it is asked for them: tiles of the same rows come one after the
/// other.
Mask to_mask(const std::shared_ptr<const TensorFile>& file, const std::string& name) {
  const MaskShape shape(file->entries().at(name).shape);
  struct Band {
    std::int64_t head = -1;
    Range rows{};
    HostTensor bits;
  };
  const auto band = std::make_shared<Band>();
  const auto fill = [=](std::int64_t head, Range rows, Range keys, std::uint8_t* visible) {
    if (band->head != head || band->rows.begin != rows.begin || band->rows.end != rows.end) {
      band->bits =
          file->read_rows(name, shape.per_head ? 1 : 0, {.runs = {{rows.begin, rows.size()}, {}}});
      band->head = head;
      band->rows = rows;
    }
    const std::int64_t first = shape.per_head ? head * rows.size() : 0;
    for (std::int64_t q = 0; q < rows.size(); ++q) {
      const auto* row = band->bits.as<std::uint8_t>() + (first + q) * shape.keys + keys.begin;
      std::copy(row, row + keys.size(), visible + q * keys.size());
    }
  };
  return Mask::lazy(shape.heads, shape.queries, shape.keys, fill);
}

Inputs load_inputs(const Headers& headers, const Load& load, const LoadMask& load_mask,
                   const Settings& settings, const std::string& source) {
  Inputs inputs;
  inputs.problem = check_headers(headers, settings, source);
  inputs.problem.device = settings.device();
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
  if (headers.contains("mask")) inputs.options.mask = load_mask();
  inputs.options.segment_ids = inputs.find("q_segment_ids") || inputs.find("kv_segment_ids");
  inputs.options.explicit_positions = inputs.find("q_positions") != nullptr;
  for (const auto& [name, tensor] : inputs.tensors) {
    inputs.shapes[name] = {tensor.dtype(), headers.at(name).shape};
  }
  return inputs;
}

Headers headers_of(const TensorFile& file) {
  Headers headers;
  for (const auto& [name, entry] : file.entries()) headers[name] = {entry.dtype, entry.shape};
  return headers;
}

}  // namespace

Inputs read_inputs(const std::string& path, const Settings& settings) {
  const TensorFile file(path);
  return load_inputs(
      headers_of(file), [&](const std::string& name) { return file.read(name); },
      [&] { return to_mask(file.read("mask")); }, settings, path);
}

Inputs read_rows(const std::string& path, const Settings& settings, int rank, int world) {
  const auto file = std::make_shared<const TensorFile>(path);
  const auto load = [&](const std::string& name) {
    if (name == "softmax_aux") return file->read(name);
    const std::size_t axis = name == "q_positions" || name == "kv_positions" ? 0 : 1;
    const std::int64_t length = file->entries().at(name).shape[axis];
    return file->read_rows(name, axis, positions(settings.layout, length, world, rank));
  };
  return load_inputs(
      headers_of(*file), load, [&] { return to_mask(file, "mask"); }, settings, path);
}

Inputs make_inputs(TensorMap tensors, const Settings& settings, const std::string& source) {
  Headers headers;
  for (const auto& [name, tensor] : tensors) headers[name] = {tensor.dtype(), tensor.shape()};
  const auto load = [&](const std::string& name) { return std::move(tensors.at(name)); };
  return load_inputs(
      headers, load, [&] { return to_mask(tensors.at("mask")); }, settings, source);
}

}  // namespace ringattn::tool
