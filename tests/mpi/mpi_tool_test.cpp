// SPDX-License-Identifier: Apache-2.0
// The tool over MPI, started as users start it: the bytes of the local ring, no more memory than
// the plan says, and errors that are said once.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "io/io_testing.h"
#include "io/tensor_file.h"
#include "mpi/launch.h"
#include "support/data.h"
#include "support/ring_run.h"

namespace ringattn::testing {
namespace {

using Arguments = std::vector<std::string>;

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++found;
  return found;
}

/// A case's tensors as a file.
TensorMap tensors_of(const std::string& text) {
  const support::CaseData data = support::make_data(support::parse_case(text));
  const std::pair<const char*, const HostTensor*> all[] = {{"query", &data.query},
                                                           {"key", &data.key},
                                                           {"value", &data.value},
                                                           {"dout", &data.dout},
                                                           {"softmax_aux", &data.sinks},
                                                           {"q_segment_ids", &data.q_segment_ids},
                                                           {"kv_segment_ids", &data.kv_segment_ids},
                                                           {"q_positions", &data.q_positions},
                                                           {"kv_positions", &data.kv_positions},
                                                           {"mask", &data.mask}};
  TensorMap tensors;
  for (const auto& [name, tensor] : all) {
    if (!tensor->shape().empty()) tensors[name] = *tensor;
  }
  return tensors;
}

class MpiTool : public ::testing::TestWithParam<std::string> {
 protected:
  Launched run(int ranks, Arguments words) const {
    words.insert(words.begin(), tool(GetParam()));
    words.insert(words.end(), {"--communicator", "mpi", "--threads", "1"});
    return launch(GetParam(), {.ranks = ranks}, words);
  }

  /// The same on a ring of threads, without mpirun.
  void run_local(int ranks, Arguments words) const {
    std::string command = tool(GetParam());
    for (const std::string& word : words) command += " '" + word + "'";
    command += " --threads 1 --quiet --ring " + std::to_string(ranks);
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }

  const TempFolder folder_;
};

TEST_P(MpiTool, RunWritesTheBytesOfTheLocalRing) {
  const std::vector<std::pair<std::string, Arguments>> problems = {
      {"sq50_h4x2_d16_bf16_seg_sink_bwd", {"--sliding-window", "7,12", "--layout", "zigzag"}},
      {"b2_sq37_h2x1_d8_bwd", {"--causal", "--layout", "striped", "--grad-dtype", "f32"}},
      {"sq70_h2_d8_maskh_bwd", {}},
      {"sq41_d8_pos_bwd", {"--causal", "--layout", "striped"}},
      {"sq3_sk90_d8_f16_bwd", {}}};  // some ranks hold no query
  int number = 0;
  for (const auto& [text, options] : problems) {
    const std::string in = folder_ / ("in" + std::to_string(number));
    const bool one_file = ++number % 2 == 1;
    const std::string end = one_file ? ".safetensors" : "";
    write_tensors(in + end, tensors_of(text));
    Arguments words = {"run", in + end, "-o", folder_ / ("local" + end), "--backward"};
    words.insert(words.end(), options.begin(), options.end());
    run_local(4, words);
    words[3] = folder_ / ("mpi" + end);
    const Launched done = run(4, words);
    ASSERT_EQ(done.code, 0) << text << ": " << done.out;
    EXPECT_EQ(count(done.out, "wrote "), 1) << done.out;
    const TensorMap got = read_tensors(folder_ / ("mpi" + end));
    const TensorMap expected = read_tensors(folder_ / ("local" + end));
    ASSERT_EQ(got.size(), expected.size()) << text;
    for (const auto& [name, tensor] : expected) expect_same(got.at(name), tensor);
    if (one_file) {
      EXPECT_EQ(get(folder_ / "mpi.safetensors"), get(folder_ / "local.safetensors"));
    }
  }
}

TEST_P(MpiTool, CheckAndBenchRunOnTheProcesses) {
  const std::string in = folder_ / "in.safetensors";
  write_tensors(in, tensors_of("sq50_h4x2_d16_seg_sink_bwd"));
  const Launched file = run(3, {"check", in, "--backward", "--json"});
  ASSERT_EQ(file.code, 0) << file.out;
  const auto json = nlohmann::json::parse(file.out);
  EXPECT_TRUE(json["ok"].get<bool>());
  EXPECT_EQ(json["errors"].size(), 6U);
  EXPECT_EQ(json["ring"].dump(), R"({"communicator":"mpi","layout":"contiguous","size":3})");
  // The launcher says how many ranks there are, not the case.
  const Launched cases = run(2, {"check", "sq64_causal_zigzag_r5_bwd", "--json"});
  ASSERT_EQ(cases.code, 0) << cases.out;
  EXPECT_EQ(nlohmann::json::parse(cases.out)["forward"]["ranks"].size(), 2U);
  const Launched random = run(3, {"check", "--random", "10", "--seed", "3"});
  EXPECT_EQ(random.code, 0) << random.out;
  EXPECT_EQ(count(random.out, "10 checked, 0 failed"), 1) << random.out;
  const Launched bench = run(2, {"bench", "sq128_causal_bwd", "--repeats", "2", "--json"});
  ASSERT_EQ(bench.code, 0) << bench.out;
  const auto results = nlohmann::json::parse(bench.out)["results"];
  ASSERT_EQ(results.size(), 2U);
  EXPECT_EQ(results[0]["ring"], 2);
  EXPECT_GT(results[0]["bytes_sent"].get<std::int64_t>(), 0);
}

TEST_P(MpiTool, ErrorsAreSaidOnceWithTheirCode) {
  const std::string in = folder_ / "in.safetensors";
  TensorMap tensors = tensors_of("sq40_d8_seg");
  write_tensors(in, tensors);
  const auto expect = [&](int code, const Arguments& words, const std::string& part, int lines) {
    const Launched done = run(3, words);
    EXPECT_EQ(done.code, code) << done.out;
    EXPECT_NE(done.out.find(part), std::string::npos) << done.out << "expected: " << part;
    EXPECT_EQ(count(done.out, "ringattn: error: "), lines) << done.out;
    EXPECT_FALSE(std::filesystem::exists(folder_ / "out.safetensors"));
  };
  const std::string out = folder_ / "out.safetensors";
  expect(5, {"run", folder_ / "none", "-o", out}, "none: cannot open: No such file", 1);
  expect(2, {"run", in, "-o", out, "--chunk-size", "0"}, "--chunk-size: expected", 1);
  expect(2, {"run", in, "-o", out, "--ring", "4"}, "--ring: expected the 3 processes", 1);
  expect(2, {"run", in, "-o", out, "--backward"}, "dout: expected this tensor", 1);
  expect(3, {"run", in, "-o", out, "--isa", "mmx"}, "mmx is not an instruction set", 1);
  // Only rank 0 looks whether OUT can be written: the others say who failed.
  const Launched parent = run(3, {"run", in, "-o", folder_ / "none/out.safetensors"});
  EXPECT_EQ(count(parent.out, "rank 0 failed: "), 2) << parent.out;
  // Ids that only rank 2 reads.
  HostTensor ids(DType::kInt64, {1, 40});
  ids.as<std::int64_t>()[39] = std::int64_t{1} << 40;
  tensors["q_segment_ids"] = ids;
  tensors["kv_segment_ids"] = HostTensor(DType::kInt64, {1, 40});
  write_tensors(in, tensors);
  const Launched value = run(3, {"run", in, "-o", out});
  EXPECT_EQ(count(value.out, "q_segment_ids: expected values that fit 32 bits"), 3) << value.out;
  EXPECT_EQ(count(value.out, "rank 2 failed: "), 2) << value.out;
  EXPECT_FALSE(std::filesystem::exists(out));
}

TEST_P(MpiTool, RanksThatWereToldDifferentThingsNameTheField) {
  const std::string in = folder_ / "in.safetensors";
  write_tensors(in, tensors_of("sq40_d8"));
  const Arguments words = {"run", in, "-o", folder_ / "out.safetensors"};
  Arguments all = words;
  all.insert(all.end(), {"--communicator", "mpi", ":", "-n", "2", tool(GetParam())});
  all.insert(all.end(), words.begin(), words.end());
  const Launched done = [&] {
    Arguments first = all;
    first.insert(first.end(), {"--layout", "zigzag"});
    first.insert(first.begin(), tool(GetParam()));
    first.insert(first.end(), {"--communicator", "mpi"});
    return launch(GetParam(), {.ranks = 1}, first);
  }();
  // Every rank ends with 4 at nearly the same time; Hydra kills those that it finds running after
  // the first, and then ends with their 9.
  const bool killed = GetParam() == "mpich" && done.code == 9;
  EXPECT_TRUE(done.code == 4 || killed) << done.code << ": " << done.out;
  EXPECT_EQ(count(done.out,
                  "layout: expected the same on every rank, got contiguous on rank 0 and "
                  "zigzag on rank 1"),
            3)
      << done.out;
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out.safetensors"));
}

/// Peak memory of every process, in MB.
std::vector<double> peaks(const Launched& done) {
  std::vector<double> megabytes;
  const auto json = nlohmann::json::parse(done.out);
  for (const auto& p : json["processes"]) {
    megabytes.push_back(p["peak_bytes"].get<double>() / 1e6);
  }
  return megabytes;
}

TEST_P(MpiTool, ARankNeedsItsRowsAndWhatThePlanSays) {
  const std::string small = folder_ / "small.safetensors";
  const std::string large = folder_ / "large.safetensors";
  write_tensors(small, tensors_of("sq64_h16_d64"));
  write_tensors(large, tensors_of("sq4096_h16_d64"));
  constexpr double kTensor = 4096.0 * 16 * 64 * 4 / 1e6;  // MB; query, key, value and out
  const auto measure = [&](int ranks, const std::string& in) {
    const Launched done = run(ranks, {"run", in, "-o", folder_ / "out.safetensors",
                                      "--sliding-window", "64,0", "--layout", "striped", "--json"});
    EXPECT_EQ(done.code, 0) << done.out;
    const std::vector<double> all = peaks(done);
    EXPECT_EQ(all.size(), static_cast<std::size_t>(ranks));
    return *std::max_element(all.begin(), all.end());
  };
  for (const int ranks : {1, 4}) {
    const std::string plan = folder_ / "plan";
    const std::string command =
        tool(GetParam()) + " plan sq4096_h16_d64_w64,0_striped --threads 1 --json" +
        " --communicator mpi --ring " + std::to_string(ranks) + " > " + plan;
    ASSERT_EQ(std::system(command.c_str()), 0);
    const auto planned = nlohmann::json::parse(get(plan));
    double workspace = 0.0;
    for (const auto& rank : planned["forward"]["ranks"]) {
      workspace = std::max(workspace, rank["workspace_bytes"].get<double>() / 1e6);
    }
    ASSERT_GT(workspace, 0.0);
    const double predicted = 4 * kTensor / ranks + workspace;
    const double measured = measure(ranks, large) - measure(ranks, small);
    std::printf("%d ranks: predicted %.1f MB, measured %.1f MB\n", ranks, predicted, measured);
    // A tenth, and what an allocator and MPI keep for themselves.
    EXPECT_LE(measured, 1.1 * predicted + 8) << ranks << " ranks";
    EXPECT_GE(measured, 0.8 * predicted - 8) << ranks << " ranks";
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MpiTool);
INSTANTIATE_TEST_SUITE_P(On, MpiTool, ::testing::ValuesIn(flavours()),
                         [](const auto& p) { return p.param; });

}  // namespace
}  // namespace ringattn::testing
