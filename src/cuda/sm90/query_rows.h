// SPDX-License-Identifier: Apache-2.0
// What is done once per pass for the query rows of a backward, after its steps.
#pragma once

#include "cuda/parameters.h"

namespace ringattn::cuda::sm90 {

/// dQ from its sums: times the scale, rounded once.
template <class T>
struct FinishQueries {
  QueryTiles tiles;
  std::int64_t heads;  // of all batch rows
  int heads_per_batch, head_dim;
  const float* sums;
  const unsigned* added;  // if set: 0 for a part that nobody has added to, and that holds nothing
  float scale;
  Rows<T> dquery;  // one of the two
  Rows<float> dquery32;
};
template <class T>
cudaError_t finish_queries(const FinishQueries<T>& p, cudaStream_t stream);

}  // namespace ringattn::cuda::sm90
