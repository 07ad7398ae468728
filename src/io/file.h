// SPDX-License-Identifier: Apache-2.0
// Files by descriptor: positioned reads and checked writes. It knows no format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "io/file_error.h"

namespace ringattn {

/// A file open for reading. Reads do not move a shared offset, so threads may read at once.
class File {
 public:
  /// Opens a regular file; anything else (a pipe, a device, a folder) is refused.
  static File open(const std::string& path);

  /// Takes over a descriptor; `name` stands for it in messages.
  File(int descriptor, std::string name);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;

  const std::string& name() const { return name_; }
  std::uint64_t size() const { return size_; }

  /// Reads out.size() bytes from `offset` on; throws FileError if the file ends before.
  void read(std::uint64_t offset, std::span<std::byte> out) const;

 private:
  int descriptor_ = -1;
  std::string name_;
  std::uint64_t size_ = 0;
};

/// A file being written. Without close() it may be incomplete.
class FileWriter {
 public:
  enum class Mode { kCreate, kJoin };

  /// kCreate: `path` must not exist. kJoin: it does, and others write to it too. Messages name
  /// `shown`.
  FileWriter(const std::string& path, std::string shown, Mode mode = Mode::kCreate);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void write(std::span<const std::byte> bytes);

  /// Moves no shared offset. The file grows if it must.
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);

  /// Gives the file its size; what nobody writes is zero.
  void resize(std::uint64_t bytes);

  /// Puts everything on the disk: a full disk shows here at the latest.
  void close();

 private:
  int descriptor_;
  std::string shown_;
};

}  // namespace ringattn
