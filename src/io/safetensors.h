// SPDX-License-Identifier: Apache-2.0
// Files of the format "safetensors": a length, a JSON header, then the bytes of all tensors.
// Metadata is checked for form and then ignored; dtypes that ringattn has no use for are refused.
#pragma once

#include <map>
#include <string>

#include "io/tensor_entry.h"

namespace ringattn {

/// Parses and checks the header: the tensors must tile the data without hole or overlap.
std::map<std::string, TensorEntry> open_safetensors(const File& file);

/// A file's first bytes, and where each tensor follows: widest dtype first, then by name, so that
/// each is aligned.
struct SafetensorsHead {
  std::string bytes;
  std::map<std::string, TensorEntry> entries;
};
SafetensorsHead safetensors_head(const TensorShapes& shapes);

}  // namespace ringattn
