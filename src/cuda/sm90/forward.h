// SPDX-License-Identifier: Apache-2.0
// The forward pass on Hopper, as the backend calls it.
#pragma once

#include "cuda/parameters.h"
#include "plan.h"

namespace ringattn::cuda::sm90 {

/// Is the current device one that these kernels are made for?
bool on_hopper();

/// Do they take the problem, whatever its tensors' strides are?
bool takes(const Problem& problem);

/// The tiles by which they ask the schedule.
TileShape forward_tiles(const Problem& problem);

/// How accumulators of these query rows lie between steps.
QueryTiles acc_tiles(const Problem& problem, const Positions& queries);

/// Do they take this step? If not, the portable kernels do, and the state between steps is the
/// same for both.
template <class T>
bool takes(const cuda::ForwardParameters<T>& parameters);

template <class T>
cudaError_t forward(const cuda::ForwardParameters<T>& parameters, cudaStream_t stream);

}  // namespace ringattn::cuda::sm90
