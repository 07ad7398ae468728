// SPDX-License-Identifier: Apache-2.0
// Output that appears complete or not at all: written without a name or beside its own, then given
// it. An existing file or folder of that name is replaced on success and untouched on failure.
#pragma once

#include <memory>
#include <string>

#include "io/file.h"

namespace ringattn {

class AtomicOutput {
 public:
  enum class Kind { kFile, kFolder };

  /// Who will write. On one machine, where the file system can, a file has no name until commit():
  /// nothing of it stays even if all its writers are killed.
  enum class Writers { kThisMachine, kMachines };

  /// Checks everything that commit() will need, and creates the temporary. A folder that holds
  /// other things than .npy files is never replaced. Throws FileError.
  AtomicOutput(const std::string& path, Kind kind, Writers writers = Writers::kThisMachine);

  /// Helps with an output that another process has created as `temporary` and will commit. All of
  /// them see to it that nothing is left of it, should the others end before.
  AtomicOutput(const std::string& path, Kind kind, const std::string& temporary);

  /// Removes the temporary unless commit() succeeded.
  ~AtomicOutput();
  AtomicOutput(const AtomicOutput&) = delete;
  AtomicOutput& operator=(const AtomicOutput&) = delete;

  /// The file itself (`entry` empty), or a new file inside the folder.
  std::unique_ptr<FileWriter> create(const std::string& entry = {});

  /// The same for a file that another process has created, to write to it as well.
  std::unique_ptr<FileWriter> join(const std::string& entry = {});

  /// Where writers find it until commit().
  const std::string& temporary() const { return temporary_; }

  /// Renames the temporary to the name. Writers must be closed.
  void commit();

 private:
  std::string name_of(const std::string& folder, const std::string& entry) const;
  void rename_to_path(const std::string& from);

  std::string path_;
  std::string temporary_;
  int nameless_ = -1;  // descriptor of the file that has no name
  Kind kind_;
};

/// Removes the temporaries of every output that is being written and lets nobody create or commit
/// one from now on (callers of those block for ever). For a thread that ends the process, such as
/// one that waits for signals; not for a signal handler.
void remove_temporaries_before_exit() noexcept;

}  // namespace ringattn
