// SPDX-License-Identifier: Apache-2.0
// From the tensors of IN to a problem: names, dtypes and shapes are checked here, with the
// tensor's name in every message. It computes nothing; what the mathematics demands of values is
// the library's to check.
#pragma once

#include <string>

#include "io/host_tensor.h"
#include "options.h"
#include "ringattn/attention.h"

namespace ringattn::tool {

/// Global tensors, ready to be sharded: data in the problem's dtype, ids int32, positions int64.
struct Inputs {
  Problem problem;
  Options options;    // of the settings, with the tensor `mask`, if there is one
  TensorMap tensors;  // query, key, value; if present: q_segment_ids, kv_segment_ids,
                      // softmax_aux, q_positions, kv_positions; with --backward: dout

  const HostTensor* find(const std::string& name) const {
    const auto it = tensors.find(name);
    return it == tensors.end() ? nullptr : &it->second;
  }
};

/// Reads IN and checks it. FileError for the file; Error for what it holds.
Inputs read_inputs(const std::string& path, const Settings& settings);

/// The same from tensors that are at hand; `source` is named in messages.
Inputs make_inputs(TensorMap tensors, const Settings& settings, const std::string& source);

}  // namespace ringattn::tool
