// SPDX-License-Identifier: Apache-2.0
#include "io/tensor_file.h"

#include <algorithm>
#include <filesystem>
#include <utility>

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

HostTensor TensorFile::read_rows(const std::string& name, std::size_t axis,
                                 const Positions& rows) const {
  const TensorEntry& tensor = entry(name);
  return ringattn::read_rows(*files_.at(name), tensor, axis, rows);
}

TensorMap read_tensors(const std::string& path) {
  const TensorFile file(path);
  TensorMap tensors;
  for (const auto& [name, entry] : file.entries()) tensors[name] = file.read(name);
  return tensors;
}

TensorOutput::TensorOutput(const std::string& path, const TensorShapes& shapes,
                           AtomicOutput::Writers writers)
    : output_(path, kind_of(path), writers), places_(places(path, shapes)) {
  open(FileWriter::Mode::kCreate);
  for (const auto& [name, place] : places_) {
    FileWriter& file = *files_.at(place.file);
    file.write_at(0, std::as_bytes(std::span(place.head)));
    std::uint64_t end = place.head.size();
    for (const auto& [other_name, other] : places_) {
      if (other.file == place.file) end = std::max(end, other.entry.offset + other.entry.bytes);
    }
    file.resize(end);
  }
}

TensorOutput::TensorOutput(const std::string& path, const TensorShapes& shapes,
                           const std::string& temporary)
    : output_(path, kind_of(path), temporary), places_(places(path, shapes)) {
  open(FileWriter::Mode::kJoin);
}

std::map<std::string, TensorOutput::Place> TensorOutput::places(const std::string& path,
                                                                const TensorShapes& shapes) {
  std::map<std::string, Place> places;
  if (kind_of(path) == AtomicOutput::Kind::kFile) {
    const SafetensorsHead head = safetensors_head(shapes);
    for (const auto& [name, entry] : head.entries) places[name] = {{}, head.bytes, entry};
    return places;
  }
  for (const auto& [name, tensor] : shapes) {
    const std::string head = npy_head(tensor);
    places[name] = {name + ".npy",
                    head,
                    {tensor.dtype, tensor.shape, head.size(),
                     bytes_of(tensor.dtype, tensor.shape).value_or(0)}};
  }
  return places;
}

void TensorOutput::open(FileWriter::Mode mode) {
  for (const auto& [name, place] : places_) {
    auto& file = files_[place.file];
    if (file != nullptr) continue;
    file =
        mode == FileWriter::Mode::kCreate ? output_.create(place.file) : output_.join(place.file);
  }
}

void TensorOutput::write_rows(const std::string& name, std::size_t axis, const Positions& rows,
                              std::span<const std::byte> bytes) {
  const Place& place = places_.at(name);
  ringattn::write_rows(*files_.at(place.file), place.entry, axis, rows, bytes);
}

void TensorOutput::write(const std::string& name, std::span<const std::byte> bytes) {
  const Place& place = places_.at(name);
  files_.at(place.file)->write_at(place.entry.offset, bytes);
}

void TensorOutput::close() {
  for (const auto& [name, file] : files_) file->close();
}

void write_tensors(const std::string& path, const TensorMap& tensors) {
  TensorOutput output(path, shapes_of(tensors));
  for (const auto& [name, tensor] : tensors) {
    output.write(name, {tensor.data(), tensor.size_bytes()});
  }
  output.close();
  output.commit();
}

void check_writable(const std::string& path) { AtomicOutput(path, kind_of(path)); }

}  // namespace ringattn
