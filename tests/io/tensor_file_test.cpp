// SPDX-License-Identifier: Apache-2.0
// Output appears complete or not at all, and folders are what they should be.
#include "io/tensor_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/atomic_output.h"
#include "io_testing.h"

namespace ringattn::testing {
namespace {

namespace fs = std::filesystem;

/// Files may grow to `bytes` only: what a full disk looks like, without one.
class SmallDisk {
 public:
  explicit SmallDisk(rlim_t bytes) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit now{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &now);
  }
  ~SmallDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;

 private:
  rlimit before_{};
  void (*handler_)(int);
};

const TensorMap kSmall = {{"a", counting(DType::kFloat32, {2})}};

TEST(TensorFile, AFullDiskLeavesTheOldFileAndNothingElse) {
  const TempFolder folder;
  const TensorMap large = {{"a", counting(DType::kFloat32, {100000})}};
  for (const std::string name : {"x.safetensors", "x"}) {
    write_tensors(folder / name, kSmall);
    {
      const SmallDisk disk(5000);
      expect_file_error([&] { write_tensors(folder / name, large); }, name,
                        "cannot write: File too");
    }
    expect_same(read_tensors(folder / name).at("a"), kSmall.at("a"));
  }
  EXPECT_EQ(folder.entries(), 2);
}

TEST(TensorFile, DevicesAreNotReplaced) {
  expect_file_error([] { write_tensors("/dev/full", kSmall); }, "/dev/full", "not a folder");
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
}

TEST(TensorFile, OutputReplacesAFileAndAFolder) {
  const TempFolder folder;
  const TensorMap other = {{"b", counting(DType::kInt32, {3})}};
  for (const std::string name : {"x.safetensors", "x", "y/"}) {
    write_tensors(folder / name, kSmall);
    write_tensors(folder / name, other);
    EXPECT_EQ(read_tensors(folder / name).size(), 1U);
    expect_same(read_tensors(folder / name).at("b"), other.at("b"));
  }
  EXPECT_EQ(folder.entries(), 3);
}

TEST(TensorFile, NeverReplacesAFolderOfOtherThings) {
  const TempFolder folder;
  fs::create_directory(folder / "home");
  put(folder / "home/letter.txt", "dear");
  expect_file_error([&] { write_tensors(folder / "home", kSmall); }, "home", "'letter.txt'");
  expect_file_error([&] { check_writable(folder / "home"); }, "home", "not replaced");
  fs::create_directory(folder / "home.safetensors");
  expect_file_error([&] { write_tensors(folder / "home.safetensors", kSmall); }, "home",
                    "not a regular file");
  put(folder / "file", "");
  expect_file_error([&] { write_tensors(folder / "file", kSmall); }, "file", "not a folder");
  EXPECT_EQ(get(folder / "home/letter.txt"), "dear");
  EXPECT_EQ(folder.entries(), 3);
}

TEST(TensorFile, AMissingOrUnwritableParentIsFoundBefore) {
  const TempFolder folder;
  expect_file_error([&] { check_writable(folder / "none/x.safetensors"); }, "none/x.safetensors",
                    "cannot write into the folder");
  expect_file_error([&] { check_writable("/proc/x"); }, "/proc/x", "cannot write into the folder");
  expect_file_error([&] { check_writable(folder.path() + "/.."); }, "..", "expected a name");
  expect_file_error([&] { check_writable(""); }, "", "expected a name");
  put(folder / "file", "");
  expect_file_error([&] { check_writable(folder / "file/x"); }, "file/x", "Not a directory");
  check_writable(folder / "fine.safetensors");
  check_writable(folder / "fine");
  EXPECT_EQ(folder.entries(), 1);
}

TEST(TensorFile, AnErrorWhileWritingLeavesNothing) {
  const TempFolder folder;
  const TensorMap bad = {{"a", kSmall.at("a")}, {"in/a/folder", kSmall.at("a")}};
  expect_file_error([&] { write_tensors(folder / "x", bad); }, "x/in/a/folder.npy",
                    "cannot create");
  EXPECT_EQ(folder.entries(), 0);
}

TEST(TensorFile, ProcessesThatEndRemoveTheirTemporaries) {
  const TempFolder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    const AtomicOutput file(folder / "x.safetensors", AtomicOutput::Kind::kFile,
                            AtomicOutput::Writers::kMachines);
    AtomicOutput tree(folder / "x", AtomicOutput::Kind::kFolder);
    const std::byte data[100] = {};
    tree.create("a.npy")->write(data);
    const bool both = folder.entries() == 2;
    remove_temporaries_before_exit();
    ::_exit(both ? 42 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 42);
  EXPECT_EQ(folder.entries(), 0);
}

TEST(TensorFile, OfAKilledWriterNothingStays) {
  const TempFolder folder;
  if (AtomicOutput probe(folder / "x.safetensors", AtomicOutput::Kind::kFile);
      folder.entries() != 0) {
    GTEST_SKIP() << "the file system of " << folder.path() << " has no files without a name";
  }
  const pid_t child = ::fork();
  if (child == 0) {
    TensorOutput output(folder / "x.safetensors", shapes_of(kSmall));
    output.write("a", {kSmall.at("a").data(), kSmall.at("a").size_bytes()});
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(folder.entries(), 0);
}

TEST(TensorFile, SeveralWritersFillTheirRowsOfOneOutput) {
  const HostTensor whole = counting(DType::kFloat32, {2, 7, 3});
  const TensorShapes shapes = {{"a", {DType::kFloat32, {2, 7, 3}}}};
  for (const auto writers :
       {AtomicOutput::Writers::kThisMachine, AtomicOutput::Writers::kMachines}) {
    for (const std::string name : {"x.safetensors", "x"}) {
      for (const Layout layout : {Layout::kContiguous, Layout::kZigzag, Layout::kStriped}) {
        const TempFolder folder;
        write_tensors(folder / name, kSmall);  // to be replaced
        {
          TensorOutput first(folder / name, shapes, writers);
          TensorOutput second(folder / name, shapes, first.temporary());
          for (int r = 0; r < 2; ++r) {
            const Positions rows = positions(layout, 7, 2, r);
            HostTensor local(DType::kFloat32, {2, rows.size(), 3});
            shard(whole.view(), 1, layout, 2, r, local.view());
            (r == 0 ? first : second).write_rows("a", 1, rows, {local.data(), local.size_bytes()});
          }
          second.close();
          first.close();
          expect_same(read_tensors(folder / name).at("a"), kSmall.at("a"));
          first.commit();
        }
        expect_same(read_tensors(folder / name).at("a"), whole);
        EXPECT_EQ(folder.entries(), 1);
        const TensorFile file(folder / name);
        const HostTensor rows = file.read_rows("a", 1, positions(layout, 7, 2, 1));
        HostTensor expected(DType::kFloat32, rows.shape());
        shard(whole.view(), 1, layout, 2, 1, expected.view());
        expect_same(rows, expected);
      }
    }
  }
}

TEST(TensorFile, NewFilesObeyTheUmask) {
  const TempFolder folder;
  const mode_t before = ::umask(027);
  write_tensors(folder / "x.safetensors", kSmall);
  write_tensors(folder / "x", kSmall);
  ::umask(before);
  const auto mode = [&](const char* name) {
    return static_cast<int>(fs::status(folder / name).permissions());
  };
  EXPECT_EQ(mode("x.safetensors"), 0640);
  EXPECT_EQ(mode("x"), 0750);
  EXPECT_EQ(mode("x/a.npy"), 0640);
}

TEST(TensorFile, RefusesInputOfAnotherKind) {
  const TempFolder folder;
  expect_file_error([&] { TensorFile(folder / "none.safetensors"); }, "none",
                    "cannot open: No such");
  put(folder / "a.npy", "");
  expect_file_error([&] { TensorFile(folder / "a.npy"); }, "a.npy",
                    "a folder of .npy files, got one");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_file_error([&] { TensorFile(folder / "pipe"); }, "pipe", "expected a regular file");
  expect_file_error([&] { TensorFile("/dev/zero"); }, "/dev/zero", "expected a regular file");
  fs::create_directory(folder / "in");
  put(folder / "in/readme.txt", "");
  expect_file_error([&] { TensorFile(folder / "in"); }, "in", "got 'readme.txt'");
  fs::remove(folder / "in/readme.txt");
  fs::create_directory(folder / "in/a.npy");
  expect_file_error([&] { TensorFile(folder / "in"); }, "in/a.npy", "expected a regular file");
}

TEST(TensorFile, HiddenFilesInAFolderAreNoTensors) {
  const TempFolder folder;
  write_tensors(folder / "x", kSmall);
  put(folder / "x/.DS_Store", "");
  EXPECT_EQ(read_tensors(folder / "x").size(), 1U);
}

TEST(TensorFile, AFileThatShrinksIsAnErrorNotACrash) {
  const TempFolder folder;
  write_tensors(folder / "x.safetensors", {{"a", counting(DType::kFloat32, {1000})}});
  const TensorFile file(folder / "x.safetensors");
  fs::resize_file(folder / "x.safetensors", 300);
  expect_file_error([&] { file.read("a"); }, "x.safetensors", "ends at byte 300");
}

}  // namespace
}  // namespace ringattn::testing
