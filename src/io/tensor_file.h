// SPDX-License-Identifier: Apache-2.0
// A set of named tensors on disk: a .safetensors file, or a folder of .npy files named after
// them. Which of the two is decided by what is there (reading) or by the name (writing).
#pragma once

#include <map>
#include <memory>
#include <string>

#include "io/atomic_output.h"
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

  /// The rows of dimension `axis` that one rank holds.
  HostTensor read_rows(const std::string& name, std::size_t axis, const Positions& rows) const;

 private:
  void open_folder();
  const TensorEntry& entry(const std::string& name) const;

  std::string path_;
  std::map<std::string, TensorEntry> entries_;
  std::map<std::string, std::shared_ptr<const File>> files_;  // of each tensor
};

/// All tensors of a file or folder.
TensorMap read_tensors(const std::string& path);

/// Tensors on their way to the disk: all of them appear at commit() or, on any failure, nothing. A
/// file if the name ends in ".safetensors", else a folder. Several processes may write one, each
/// rows of its own: one creates it, and commits it when all have closed.
class TensorOutput {
 public:
  /// Creates the temporary, with its headers and room for the data.
  TensorOutput(const std::string& path, const TensorShapes& shapes,
               AtomicOutput::Writers writers = AtomicOutput::Writers::kThisMachine);

  /// Joins what another process has created as `temporary`, of the same shapes.
  TensorOutput(const std::string& path, const TensorShapes& shapes, const std::string& temporary);

  const std::string& temporary() const { return output_.temporary(); }

  /// Rows of dimension `axis`: `bytes` are those of a contiguous tensor.
  void write_rows(const std::string& name, std::size_t axis, const Positions& rows,
                  std::span<const std::byte> bytes);
  void write(const std::string& name, std::span<const std::byte> bytes);

  /// What was written is on the disk.
  void close();

  void commit() { output_.commit(); }

 private:
  struct Place {
    std::string file;  // inside the folder; empty: the output itself
    std::string head;  // its first bytes
    TensorEntry entry;
  };
  static std::map<std::string, Place> places(const std::string& path, const TensorShapes& shapes);
  void open(FileWriter::Mode mode);

  AtomicOutput output_;
  std::map<std::string, Place> places_;                       // of each tensor
  std::map<std::string, std::unique_ptr<FileWriter>> files_;  // by Place::file
};

/// Writes all of them or, on any failure, nothing: see TensorOutput.
void write_tensors(const std::string& path, const TensorMap& tensors);

/// Throws FileError if write_tensors() could not even begin: to be asked before a long
/// computation.
void check_writable(const std::string& path);

}  // namespace ringattn
