// SPDX-License-Identifier: Apache-2.0
#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace ringattn {
namespace {

// Linux moves at most 2 GiB - 4 KiB in one call; macOS refuses more.
constexpr std::size_t kMaxTransfer = std::size_t{1} << 30;

std::string reason() { return std::strerror(errno); }

}  // namespace

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLongest = 64;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F) {
      out += c;
    } else {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out + (text.size() > kLongest ? "...'" : "'");
}

File File::open(const std::string& path) {
  // O_NONBLOCK: opening a pipe that nobody writes to must not hang.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw FileError(path, "cannot open: " + reason());
  return {descriptor, path};
}

File::File(int descriptor, std::string name) : descriptor_(descriptor), name_(std::move(name)) {
  struct stat status {};
  const bool known = ::fstat(descriptor_, &status) == 0;
  if (known && S_ISREG(status.st_mode)) {
    size_ = static_cast<std::uint64_t>(status.st_size);
    return;
  }
  const std::string why = known ? "expected a regular file" : "cannot open: " + reason();
  ::close(descriptor_);
  throw FileError(name_, why);
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      name_(std::move(other.name_)),
      size_(other.size_) {}

File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(name_, other.name_);
  std::swap(size_, other.size_);
  return *this;
}

void File::read(std::uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const std::size_t wanted = std::min(out.size(), kMaxTransfer);
    const ssize_t got = ::pread(descriptor_, out.data(), wanted, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw FileError(name_, "cannot read: " + reason());
    if (got == 0) {
      throw FileError(name_, "ends at byte " + std::to_string(offset) + ", expected " +
                                 std::to_string(out.size()) + " bytes more");
    }
    offset += static_cast<std::uint64_t>(got);
    out = out.subspan(static_cast<std::size_t>(got));
  }
}

FileWriter::FileWriter(const std::string& path, std::string shown, Mode mode)
    : descriptor_(::open(path.c_str(),
                         O_WRONLY | O_CLOEXEC | (mode == Mode::kCreate ? O_CREAT | O_EXCL : 0),
                         0666)),
      shown_(std::move(shown)) {
  if (descriptor_ >= 0) return;
  throw FileError(shown_,
                  (mode == Mode::kCreate ? "cannot create: " : "cannot write: ") + reason());
}

FileWriter::~FileWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void FileWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t wanted = std::min(bytes.size(), kMaxTransfer);
    const ssize_t put = ::write(descriptor_, bytes.data(), wanted);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw FileError(shown_, "cannot write: " + reason());
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
}

void FileWriter::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t wanted = std::min(bytes.size(), kMaxTransfer);
    const ssize_t put = ::pwrite(descriptor_, bytes.data(), wanted, static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw FileError(shown_, "cannot write: " + reason());
    offset += static_cast<std::uint64_t>(put);
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
}

void FileWriter::resize(std::uint64_t bytes) {
  if (::ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) {
    throw FileError(shown_, "cannot write: " + reason());
  }
}

void FileWriter::close() {
  // A file system without fsync (EINVAL) has nothing to flush.
  const bool flushed = ::fsync(descriptor_) == 0 || errno == EINVAL;
  const std::string why = flushed ? std::string() : reason();
  const bool closed = ::close(std::exchange(descriptor_, -1)) == 0;
  if (!flushed) throw FileError(shown_, "cannot write: " + why);
  if (!closed) throw FileError(shown_, "cannot write: " + reason());
}

}  // namespace ringattn
