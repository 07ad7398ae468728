// SPDX-License-Identifier: Apache-2.0
// The backward pass on Hopper, as the backend calls it.
#pragma once

#include <cstddef>
#include <span>

#include "cuda/parameters.h"
#include "plan.h"

namespace ringattn::cuda::sm90 {

/// The tiles by which they ask the schedule.
TileShape backward_tiles(const Problem& problem);

/// Do blocks add to the same sums of dQ? Otherwise those are only needed between steps.
bool adds_queries(const Problem& problem);

/// How they keep the sums of dQ for a shard of queries.
QueryTiles query_tiles(const Problem& problem, const Positions& queries);

/// Of BackwardParameters::ticket: one per kernel.
constexpr int kBackwardTickets = 2;

/// What a step wants to find set to 0: tickets, what `added` says and, before the first of several
/// steps, sums of dQ. These lie behind each other, the sums first. backward() clears it, but before
/// the first step the caller does.
template <class T>
std::span<std::byte> wants_cleared(const cuda::BackwardParameters<T>& parameters);

/// Do they take this step? If not, the portable kernels do, with the same sums between steps.
template <class T>
bool takes(const cuda::BackwardParameters<T>& parameters);

template <class T>
cudaError_t backward(const cuda::BackwardParameters<T>& parameters, cudaStream_t stream);

}  // namespace ringattn::cuda::sm90
