// SPDX-License-Identifier: Apache-2.0
// From the tensors of IN to a problem: names, dtypes and shapes are checked here, with the
// tensor's name in every message. It computes nothing; what the mathematics demands of values is
// the library's to check.
#pragma once

#include <string>

#include "io/tensor_entry.h"
#include "options.h"
#include "ringattn/attention.h"

namespace ringattn::tool {

/// Global tensors, ready to be sharded, or one rank's rows of them: data in the problem's dtype,
/// ids int32, positions int64.
struct Inputs {
  Problem problem;
  Options options;      // of the settings, with the tensor `mask`, if there is one
  TensorMap tensors;    // query, key, value; if present: q_segment_ids, kv_segment_ids,
                        // softmax_aux, q_positions, kv_positions; with --backward: dout
  TensorShapes shapes;  // of these, in IN: global

  const HostTensor* find(const std::string& name) const {
    const auto it = tensors.find(name);
    return it == tensors.end() ? nullptr : &it->second;
  }
};

/// Reads IN and checks it. FileError for the file; Error for what it holds.
Inputs read_inputs(const std::string& path, const Settings& settings);

/// Only the rows of one rank of a ring of `world`; softmax_aux whole. The tensor `mask` is read a
/// few rows at a time, and kept as bits of its mixed blocks.
Inputs read_rows(const std::string& path, const Settings& settings, int rank, int world);

/// The same from tensors that are at hand; `source` is named in messages.
Inputs make_inputs(TensorMap tensors, const Settings& settings, const std::string& source);

}  // namespace ringattn::tool
