// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cfloat>
#include <functional>

#include "parse_number.h"
#include "ringattn/error.h"
#include "ringattn/version.h"

namespace ringattn::tool {
namespace {

constexpr std::int64_t kMost = INT64_MAX;
constexpr std::int64_t kMostRanks = 1024;    // each is a thread of this process
constexpr std::int64_t kMostThreads = 4096;  // more than any machine has cores
constexpr double kMostSeconds = 1e8;         // three years: no deadline overflows a clock

/// One subcommand under construction: every option records that it was given.
class Builder {
 public:
  Builder(CLI::App& parent, Settings& settings, Command command, const char* name,
          const char* description)
      : app_(*parent.add_subcommand(name, description)), settings_(settings) {
    app_.callback([&settings, command] { settings.command = command; });
  }

  CLI::App& app() { return app_; }
  Settings& settings() { return settings_; }

  void flag(const std::string& name, bool Settings::*member, const char* help) {
    Settings& s = settings_;
    app_.add_flag_callback(
        name,
        [&s, name, member] {
          s.*member = true;
          s.given.insert(name);
        },
        help);
  }

  void value(const std::string& name, const char* type, const char* help,
             std::function<void(Settings&, const std::string&)> set) {
    Settings& s = settings_;
    app_.add_option_function<std::string>(
            name,
            [&s, name, set = std::move(set)](const std::string& text) {
              set(s, text);
              s.given.insert(name);
            },
            help)
        ->type_name(type);
  }

  void integer(const std::string& name, std::int64_t Settings::*member, std::int64_t least,
               const char* help) {
    value(name, "N", help, [name, member, least](Settings& s, const std::string& text) {
      s.*member = parse_integer(name, text, least, kMost);
    });
  }

  void output(bool required, const char* type, const char* help) {
    Settings& s = settings_;
    app_.add_option_function<std::string>(
            "-o,--output",
            [&s](const std::string& text) {
              s.output = text;
              s.given.insert("-o");
            },
            help)
        ->required(required)
        ->type_name(type);
  }

  void inputs(const char* name, int least, int most, const char* help) {
    app_.add_option(name, settings_.inputs, help)
        ->type_name("")
        ->expected(least, most)
        ->required(least > 0);
  }

 private:
  CLI::App& app_;
  Settings& settings_;
};

template <class Enum>
Enum one_of(const std::string& option, const std::string& text, std::initializer_list<Enum> all) {
  std::string names;
  for (const Enum e : all) {
    if (text == name(e)) return e;
    names += (names.empty() ? "" : ", ") + std::string(name(e));
  }
  refuse(option, "one of " + names, text);
}

std::string one_of(const std::string& option, const std::string& text,
                   std::initializer_list<const char*> all) {
  std::string names;
  for (const char* e : all) {
    if (text == e) return text;
    names += (names.empty() ? "" : ", ") + std::string(e);
  }
  refuse(option, "one of " + names, text);
}

void add_mask(Builder& b) {
  b.flag("--causal", &Settings::causal, "query q sees keys k <= q");
  b.value("--sliding-window", "W|L,R", "query q sees keys q-L..q+R; a side may be none",
          [](Settings& s, const std::string& text) { s.window = parse_window(text); });
  b.value("--chunk-size", "C", "query q sees keys k <= q of its own chunk of C positions",
          [](Settings& s, const std::string& text) {
            s.chunk = parse_integer("--chunk-size", text, 1, kMost);
          });
}

void add_arithmetic(Builder& b) {
  b.value("--logits-soft-cap", "X", "scores become X * tanh(score / X)",
          [](Settings& s, const std::string& text) {
            s.soft_cap =
                static_cast<float>(parse_number("--logits-soft-cap", text, FLT_MIN, FLT_MAX));
          });
  b.value("--softmax-scale", "X", "multiplies q.k (default head_dim ** -0.5)",
          [](Settings& s, const std::string& text) {
            s.scale = static_cast<float>(parse_number("--softmax-scale", text, -FLT_MAX, FLT_MAX));
          });
  b.value("--dtype", "f32|bf16|f16", "convert query, key, value and dout on reading",
          [](Settings& s, const std::string& text) {
            s.dtype = one_of("--dtype", text, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
          });
  b.flag("--backward", &Settings::backward, "gradients too; IN must hold dout");
  b.flag("--lse", &Settings::lse,
         "the log-sum-exp of every row too; bf16 dot products then keep weights to more bits");
  b.value("--grad-dtype", "input|f32", "dtype of the gradients (default input)",
          [](Settings& s, const std::string& text) {
            s.grad_f32 = one_of("--grad-dtype", text, {"input", "f32"}) == "f32";
          });
}

void add_ring(Builder& b) {
  b.value("--ring", "N", "ranks of the ring (default 1)", [](Settings& s, const std::string& t) {
    s.ring = static_cast<int>(parse_integer("--ring", t, 1, kMostRanks));
  });
  b.value("--layout", "NAME", "contiguous, zigzag or striped: which rank holds which rows",
          [](Settings& s, const std::string& text) {
            s.layout =
                one_of("--layout", text, {Layout::kContiguous, Layout::kZigzag, Layout::kStriped});
          });
}

void add_machine(Builder& b) {
  b.integer("--q-blocksize", &Settings::q_blocksize, 1, "tile hint: query rows");
  b.integer("--kv-blocksize", &Settings::kv_blocksize, 1, "tile hint: key rows");
  b.flag("--fused-backward", &Settings::fused_backward, "hint: one backward pass, not two");
  b.flag("--deterministic", &Settings::deterministic, "the same bits every time");
  b.value("--communicator", "NAME", "local: all ranks in this process (default); mpi: one in each",
          [](Settings& s, const std::string& text) {
            s.communicator = one_of("--communicator", text, {"local", "mpi", "nccl", "peer"});
          });
  b.value("--backend", "NAME", "auto (default), reference, cpu or cuda",
          [](Settings& s, const std::string& text) {
            s.backend = one_of("--backend", text, {"auto", "reference", "cpu", "cuda"});
          });
  b.value("--isa", "NAME", "force an instruction set of the backend cpu (see ringattn info)",
          [](Settings& s, const std::string& text) { s.isa = text; });
  b.value("--threads", "T", "threads of this process (default: all cores, or its share)",
          [](Settings& s, const std::string& text) {
            s.threads = static_cast<int>(parse_integer("--threads", text, 1, kMostThreads));
          });
  b.value("--timeout", "SECONDS", "how long to wait for a peer (default 300)",
          [](Settings& s, const std::string& text) {
            const double seconds = parse_number("--timeout", text, 0.001, kMostSeconds);
            s.timeout = std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
          });
}

void add_report(Builder& b) {
  b.flag("--json", &Settings::json, "one JSON object on stdout, nothing else");
  b.flag("--quiet", &Settings::quiet, "no table and no progress");
}

void add_seed(Builder& b) {
  b.value("--seed", "S", "of random data and cases (default 0)",
          [](Settings& s, const std::string& text) {
            s.seed = static_cast<std::uint64_t>(parse_integer("--seed", text, 0, kMost));
          });
}

void add_all(Builder& b) {
  add_mask(b);
  add_arithmetic(b);
  add_ring(b);
  add_machine(b);
  add_report(b);
}

}  // namespace

void add_commands(CLI::App& app, Settings& settings) {
  app.description("Exact attention over a ring of ranks, forward and backward.");
  app.set_version_flag("--version", "ringattn " RINGATTN_VERSION);
  app.set_help_flag("-h,--help", "print this help and exit");
  app.require_subcommand(0, 1);

  Builder run(app, settings, Command::kRun, "run", "attention over a ring, from file to file");
  run.inputs("IN", 1, 1, "a .safetensors file, or a folder of .npy files named after the tensors");
  run.output(true, "OUT", "where to write; .safetensors, otherwise a folder of .npy files");
  add_all(run);
  run.app().footer(
      "Examples:\n  ringattn run qkv.safetensors -o out.safetensors --causal --ring 4\n"
      "  mpirun -n 4 ringattn run qkv.safetensors -o out.safetensors --communicator mpi");

  Builder check(app, settings, Command::kCheck, "check", "the same, compared with float64");
  check.inputs("IN", 0, CLI::detail::expected_max_vector_size,
               "a file or folder, or cases such as b2_sq512_h4_d64_causal");
  check.integer("--random", &Settings::random, 1, "check so many random cases");
  add_seed(check);
  add_all(check);
  check.app().footer(
      "Examples:\n  ringattn check qkv.safetensors --causal --backward --ring 4\n"
      "  ringattn check b1_sq300_h4x2_d64_bf16_causal_zigzag_r4_bwd\n"
      "  ringattn check --random 100 --seed 1");

  Builder bench(app, settings, Command::kBench, "bench", "time cases on random data");
  bench.inputs("CASE", 1, CLI::detail::expected_max_vector_size,
               "cases such as b1_sq4096_h8_d128_bf16_causal_r4");
  bench.value("--repeats", "N", "timed repeats (default: until the median is steady)",
              [](Settings& s, const std::string& text) {
                s.repeats = static_cast<int>(parse_integer("--repeats", text, 1, 1 << 20));
              });
  add_seed(bench);
  add_machine(bench);
  add_report(bench);
  bench.app().footer(
      "Examples:\n  ringattn bench b1_sq2048_h8_d128_causal --threads 2 --json\n"
      "  mpirun -n 2 ringattn bench b1_sq2048_h8_d128_causal --communicator mpi");

  Builder plan(app, settings, Command::kPlan, "plan", "what is computed and sent, rank by rank");
  plan.inputs("IN", 1, 1, "a file or folder, or a case");
  plan.output(false, "X.svg", "draw it instead");
  add_seed(plan);
  add_all(plan);
  plan.app().footer("Example:\n  ringattn plan b1_sq4096_h8_d64_causal_zigzag_r4 -o plan.svg");

  Builder info(app, settings, Command::kInfo, "info", "version, backends, devices, communicators");
  info.flag("--json", &Settings::json, "one JSON object on stdout");
  app.footer(
      "Examples:\n  ringattn run qkv.safetensors -o out.safetensors --causal --ring 4\n"
      "  ringattn check --random 100\n  ringattn run --help");
}

}  // namespace ringattn::tool
