// SPDX-License-Identifier: Apache-2.0
#include "io/tensor_file.h"

#include <filesystem>
#include <utility>

#include "io/atomic_output.h"
#include "io/npy.h"
#include "io/safetensors.h"
#include "ringattn/error.h"

namespace ringattn {
namespace {

namespace fs = std::filesystem;

AtomicOutput::Kind kind_of(const std::string& path) {
  return path.ends_with(".safetensors") ? AtomicOutput::Kind::kFile : AtomicOutput::Kind::kFolder;
}

}  // namespace

TensorFile::TensorFile(std::string path) : path_(std::move(path)) {
  std::error_code error;
  if (fs::is_directory(path_, error)) {
    open_folder();
    return;
  }
  if (path_.ends_with(".npy")) {
    throw FileError(path_, "expected a .safetensors file or a folder of .npy files, got one file");
  }
  const auto file = std::make_shared<const File>(File::open(path_));
  entries_ = open_safetensors(*file);
  for (const auto& [name, entry] : entries_) files_[name] = file;
}

void TensorFile::open_folder() {
  std::error_code error;
  for (const fs::directory_entry& item : fs::directory_iterator(path_, error)) {
    const std::string filename = item.path().filename().string();
    if (filename.starts_with('.')) continue;  // left there by desktops and editors
    if (!filename.ends_with(".npy")) {
      throw FileError(path_, "expected a folder of .npy files only, got " + in_quotes(filename));
    }
    const std::string name = filename.substr(0, filename.size() - 4);
    const auto file = std::make_shared<const File>(File::open(item.path().string()));
    entries_[name] = open_npy(*file);
    files_[name] = file;
  }
  if (error) throw FileError(path_, "cannot list: " + error.message());
}

const TensorEntry& TensorFile::entry(const std::string& name) const {
  const auto it = entries_.find(name);
  if (it != entries_.end()) return it->second;
  throw Error(ErrorCode::kInvalidArgument, name + ": no such tensor in " + path_);
}

HostTensor TensorFile::read(const std::string& name) const {
  const TensorEntry& tensor = entry(name);
  return read_tensor(*files_.at(name), tensor);
}

HostTensor TensorFile::read_rows(const std::string& name, std::size_t axis, std::int64_t begin,
                                 std::int64_t end) const {
  const TensorEntry& tensor = entry(name);
  return ringattn::read_rows(*files_.at(name), tensor, axis, begin, end);
}

TensorMap read_tensors(const std::string& path) {
  const TensorFile file(path);
  TensorMap tensors;
  for (const auto& [name, entry] : file.entries()) tensors[name] = file.read(name);
  return tensors;
}

void write_tensors(const std::string& path, const TensorMap& tensors) {
  AtomicOutput output(path, kind_of(path));
  if (kind_of(path) == AtomicOutput::Kind::kFile) {
    const auto file = output.create();
    write_safetensors(*file, tensors);
    file->close();
  } else {
    for (const auto& [name, tensor] : tensors) {
      const auto file = output.create(name + ".npy");
      write_npy(*file, tensor);
      file->close();
    }
  }
  output.commit();
}

void check_writable(const std::string& path) { AtomicOutput(path, kind_of(path)); }

}  // namespace ringattn
