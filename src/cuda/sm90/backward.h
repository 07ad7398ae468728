// SPDX-License-Identifier: Apache-2.0
// The backward pass on Hopper, as the backend calls it.
#pragma once

#include "cuda/parameters.h"
#include "plan.h"

namespace ringattn::cuda::sm90 {

/// The tiles by which they ask the schedule.
TileShape backward_tiles(const Problem& problem);

/// Do blocks add to the same sums of dQ? Otherwise those are only needed between steps.
bool adds_queries(const Problem& problem);

/// How they keep the sums of dQ for a shard of queries.
QueryTiles query_tiles(const Problem& problem, const Positions& queries);

/// Do they take this step? If not, the portable kernels do, with the same sums between steps.
template <class T>
bool takes(const cuda::BackwardParameters<T>& parameters);

/// Statistics by tiles, from lse and delta: before the first step.
template <class T>
cudaError_t prepare_backward(const cuda::BackwardParameters<T>& parameters, cudaStream_t stream);

template <class T>
cudaError_t backward(const cuda::BackwardParameters<T>& parameters, cudaStream_t stream);

}  // namespace ringattn::cuda::sm90
