// SPDX-License-Identifier: Apache-2.0
// Transfers that nobody drives in the background are moved on between tiles of work.
#pragma once

#include <memory>

#include "ringattn/communicator.h"
#include "ringattn/executor.h"

namespace ringattn {

/// `executor` (none: the default one), such that the thread that calls run() also calls
/// ring.progress() after each task that it does itself. Rings that hand over memory have nothing
/// to move: they get the executor as it is. The ring must outlive the result.
std::shared_ptr<Executor> with_progress(Communicator& ring, std::shared_ptr<Executor> executor);

}  // namespace ringattn
