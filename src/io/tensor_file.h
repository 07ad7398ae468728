// SPDX-License-Identifier: Apache-2.0
// A set of named tensors on disk: a .safetensors file, or a folder of .npy files named after
// them. Which of the two is decided by what is there (reading) or by the name (writing).
#pragma once

#include <map>
#include <memory>
#include <string>

#include "io/tensor_entry.h"

namespace ringattn {

/// Open for reading. Opening reads and checks every header, and no data.
class TensorFile {
 public:
  explicit TensorFile(std::string path);

  const std::string& path() const { return path_; }

  /// Name -> dtype, shape and place.
  const std::map<std::string, TensorEntry>& entries() const { return entries_; }

  HostTensor read(const std::string& name) const;

  /// Rows [begin, end) of dimension `axis`.
  HostTensor read_rows(const std::string& name, std::size_t axis, std::int64_t begin,
                       std::int64_t end) const;

 private:
  void open_folder();
  const TensorEntry& entry(const std::string& name) const;

  std::string path_;
  std::map<std::string, TensorEntry> entries_;
  std::map<std::string, std::shared_ptr<const File>> files_;  // of each tensor
};

/// All tensors of a file or folder.
TensorMap read_tensors(const std::string& path);

/// Writes all of them or, on any failure, nothing: a file if the name ends in ".safetensors",
/// else a folder.
void write_tensors(const std::string& path, const TensorMap& tensors);

/// Throws FileError if write_tensors() could not even begin: to be asked before a long
/// computation.
void check_writable(const std::string& path);

}  // namespace ringattn
