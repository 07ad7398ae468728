// SPDX-License-Identifier: Apache-2.0
#include "io/atomic_output.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <set>
#include <utility>

namespace ringattn {
namespace {

namespace fs = std::filesystem;

/// Temporaries that exist. Leaked: a thread may clean up while statics are being destroyed.
struct Registry {
  std::mutex mutex;
  std::set<std::string> paths;
};
Registry& registry() {
  static auto* const instance = new Registry;
  return *instance;
}

std::string reason() { return std::strerror(errno); }

std::string without_trailing_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

/// Refuses what commit() could not or must not replace.
void check_replaceable(const std::string& path, AtomicOutput::Kind kind) {
  const std::string last = fs::path(path).filename().string();
  if (last.empty() || last == "." || last == "..") {
    throw FileError(path, "expected a name to write to");
  }
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  if (!fs::exists(status)) return;
  if (kind == AtomicOutput::Kind::kFile) {
    if (!fs::is_regular_file(status) && !fs::is_symlink(status)) {
      throw FileError(path, "exists and is not a regular file; not replaced");
    }
    return;
  }
  if (!fs::is_directory(status)) {
    throw FileError(path,
                    "exists and is not a folder; not replaced (a file's name must end in "
                    ".safetensors)");
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error)) {
    if (entry.path().extension() != ".npy" || entry.is_directory(error)) {
      throw FileError(path, "is a folder that also holds " +
                                in_quotes(entry.path().filename().string()) +
                                ", which is no .npy file; not replaced");
    }
  }
  if (error) throw FileError(path, "cannot list: " + error.message());
}

/// A new name beside `path`.
std::string name_beside(const std::string& path, int attempt) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  const std::string name =
      ".ringattn-" + std::to_string(::getpid()) + "-" + std::to_string(now + attempt) + ".tmp";
  return (fs::path(path).parent_path() / name).string();
}

/// A file in the folder of `path` that has no name, or -1 where the system cannot.
int open_nameless(const std::string& path) {
#ifdef O_TMPFILE
  const fs::path parent = fs::path(path).parent_path();
  return ::open(parent.empty() ? "." : parent.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
#else
  return -1;
#endif
}

/// How another process opens a descriptor of this one.
std::string path_of(int descriptor) {
  return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(descriptor);
}

/// Creates a file or folder of a new name beside `path`.
std::string create_beside(const std::string& path, AtomicOutput::Kind kind) {
  const fs::path parent = fs::path(path).parent_path();
  for (int attempt = 0; attempt < 100; ++attempt) {
    std::string temporary = name_beside(path, attempt);
    if (kind == AtomicOutput::Kind::kFolder) {
      if (::mkdir(temporary.c_str(), 0777) == 0) return temporary;
    } else {
      const int made = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (made >= 0) {
        ::close(made);
        return temporary;
      }
    }
    if (errno != EEXIST) break;
  }
  throw FileError(path, "cannot write into the folder " + (parent.empty() ? "." : parent.string()) +
                            ": " + reason());
}

/// Renames a folder over a folder. Swapping the two leaves no moment without one; where the file
/// system cannot swap, the old one steps aside for a moment.
void replace_folder(const std::string& temporary, const std::string& path) {
  std::error_code ignored;
#ifdef RENAME_EXCHANGE
  if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) {
    fs::remove_all(temporary, ignored);
    return;
  }
#endif
  const std::string aside = temporary + ".old";
  if (::rename(path.c_str(), aside.c_str()) != 0)
    throw FileError(path, "cannot replace: " + reason());
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const std::string why = reason();
    (void)::rename(aside.c_str(), path.c_str());
    throw FileError(path, "cannot replace: " + why);
  }
  fs::remove_all(aside, ignored);
}

}  // namespace

AtomicOutput::AtomicOutput(const std::string& path, Kind kind, Writers writers)
    : path_(without_trailing_slashes(path)), kind_(kind) {
  check_replaceable(path_, kind_);
  Registry& open = registry();
  const std::lock_guard lock(open.mutex);
  if (kind_ == Kind::kFile && writers == Writers::kThisMachine) nameless_ = open_nameless(path_);
  if (nameless_ >= 0) {
    temporary_ = path_of(nameless_);
    if (::access(temporary_.c_str(), W_OK) == 0) return;
    ::close(std::exchange(nameless_, -1));  // no /proc: nobody else could find it
  }
  temporary_ = create_beside(path_, kind_);
  open.paths.insert(temporary_);
}

AtomicOutput::AtomicOutput(const std::string& path, Kind kind, const std::string& temporary)
    : path_(without_trailing_slashes(path)), temporary_(temporary), kind_(kind) {
  if (temporary_.starts_with("/proc/")) return;  // has no name: nothing to remove
  Registry& open = registry();
  const std::lock_guard lock(open.mutex);
  open.paths.insert(temporary_);
}

AtomicOutput::~AtomicOutput() {
  if (nameless_ >= 0) ::close(nameless_);
  Registry& open = registry();
  const std::lock_guard lock(open.mutex);
  if (open.paths.erase(temporary_) == 0) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
}

std::string AtomicOutput::name_of(const std::string& folder, const std::string& entry) const {
  return kind_ == Kind::kFolder ? folder + "/" + entry : folder;
}

std::unique_ptr<FileWriter> AtomicOutput::create(const std::string& entry) {
  Registry& open = registry();
  const std::lock_guard lock(open.mutex);
  if (nameless_ >= 0) return join(entry);
  if (kind_ == Kind::kFile) (void)::unlink(temporary_.c_str());
  return std::make_unique<FileWriter>(name_of(temporary_, entry), name_of(path_, entry));
}

std::unique_ptr<FileWriter> AtomicOutput::join(const std::string& entry) {
  return std::make_unique<FileWriter>(name_of(temporary_, entry), name_of(path_, entry),
                                      FileWriter::Mode::kJoin);
}

void AtomicOutput::commit() {
  check_replaceable(path_, kind_);
  Registry& open = registry();
  const std::lock_guard lock(open.mutex);
  if (nameless_ >= 0) {
    const auto link_to = [&](const std::string& name) {
      return ::linkat(AT_FDCWD, temporary_.c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) == 0;
    };
    if (link_to(path_)) return;
    // There is one to be replaced: only a rename does that in one step.
    const std::string name = name_beside(path_, 0);
    if (errno != EEXIST || !link_to(name)) throw FileError(path_, "cannot write: " + reason());
    rename_to_path(name);
    return;
  }
  if (kind_ == Kind::kFolder && fs::exists(path_)) {
    replace_folder(temporary_, path_);
  } else {
    rename_to_path(temporary_);
  }
  open.paths.erase(temporary_);
}

void AtomicOutput::rename_to_path(const std::string& from) {
  if (::rename(from.c_str(), path_.c_str()) == 0) return;
  const std::string why = reason();
  if (nameless_ >= 0) (void)::unlink(from.c_str());
  throw FileError(path_, "cannot write: " + why);
}

void remove_temporaries_before_exit() noexcept {
  Registry& open = registry();
  open.mutex.lock();
  std::error_code ignored;
  for (const std::string& path : open.paths) fs::remove_all(path, ignored);
}

}  // namespace ringattn
