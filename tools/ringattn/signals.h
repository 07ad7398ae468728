// SPDX-License-Identifier: Apache-2.0
// What Ctrl-C and its kin do to the tool: they end it, and leave no partial output.
#pragma once

namespace ringattn::tool {

/// To be called first in main, before any thread starts. SIGINT, SIGTERM and SIGHUP then remove
/// temporaries and end the process by the same signal; a closed pipe and a file size limit become
/// errors of the write that meets them.
void remove_temporaries_on_signals();

}  // namespace ringattn::tool
