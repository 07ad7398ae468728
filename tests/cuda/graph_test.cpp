// SPDX-License-Identifier: Apache-2.0
// Forward and backward captured into a CUDA graph: nothing waits, nothing is allocated, and a
// replay on other data gives the bits of a plain call. All ranks of a ring are in one graph.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "backend.h"
#include "cuda/availability.h"
#include "cuda/check.h"
#include "cuda/device_memory.h"
#include "ringattn/cuda.h"
#include "support/data.h"
#include "support/ring_rank.h"

// The linker sends every call of this program here (--wrap): a capture that allocates is seen.
std::atomic<int> allocations;
extern "C" {
cudaError_t __real_cudaMalloc(void** data, std::size_t bytes);
cudaError_t __wrap_cudaMalloc(void** data, std::size_t bytes) {
  ++allocations;
  return __real_cudaMalloc(data, bytes);
}
}

namespace ringattn::support {
namespace {

using cuda::check;
using cuda::native;

class CudaGraph : public OnAGpu<> {};

std::size_t bytes_of(const ConstTensorView& view) {
  std::int64_t bytes = size_of(view.dtype);
  for (int d = 0; d < view.rank; ++d) bytes *= view.dim(d);
  return static_cast<std::size_t>(bytes);
}

std::byte* data_of(const ConstTensorView& view) {
  return static_cast<std::byte*>(const_cast<void*>(view.data));
}

/// A ring on one GPU whose inputs can be exchanged in place, as a graph needs it.
class GraphRing {
 public:
  GraphRing(const Case& c, const std::vector<CaseData>& data, bool deterministic)
      : problem_(make_problem(c)),
        deterministic_(deterministic),
        ring_(make_cuda_local_ring(c.ring)) {
    problem_.device = Device::kCuda;
    Options options = make_options(c, data[0]);
    options.backend = "cuda";
    options.deterministic = deterministic;
    memory_ = &choose_backend(problem_, options).backend->memory();
    RingSettings settings;
    settings.backward = true;
    for (int r = 0; r < c.ring; ++r) {
      Member& m = members_.emplace_back();
      m.rank.rank = r;
      m.rank.memory = memory_;
      m.rank.stream = memory_->make_stream();
      m.rank.cut_inputs(data[0].inputs(), c.layout, c.ring, Guard::kNone);
      m.rank.make_outputs(settings, problem_);
      for (const CaseData& one : data) {
        RingRank& copy = m.sources.emplace_back();
        copy.rank = r;
        copy.memory = memory_;
        copy.cut_inputs(one.inputs(), c.layout, c.ring, Guard::kNone);
      }
    }
    on_all_ranks([&](Member& m) {
      Communicator& own = *ring_[static_cast<std::size_t>(m.rank.rank)];
      m.rank.attention = std::make_unique<RingAttention>(own, problem_, options);
      m.forward = allocate(*memory_, m.rank.attention->forward_workspace_bytes());
      m.backward = allocate(*memory_, m.rank.attention->backward_workspace_bytes());
    });
  }
  ~GraphRing() {
    for (Member& m : members_) memory_->destroy(m.rank.stream);
  }

  /// Puts a data set where the calls read it, and zeros where they write.
  void load(std::size_t set) {
    for (Member& m : members_) {
      const RingInputs& from = m.sources[set].in;
      const RingInputs& to = m.rank.in;
      copy(to.query, from.query);
      copy(to.key, from.key);
      copy(to.value, from.value);
      copy(to.dout, from.dout);
      for (LocalTensor* t : outputs(m)) {
        memory_->zero({data_of(t->argument()), bytes_of(t->view())}, {});
      }
    }
    check(cudaDeviceSynchronize(), "loading");
  }

  /// Enqueues both passes of all ranks, each from its own thread and on its own stream.
  void enqueue() {
    on_all_ranks([&](Member& m) { enqueue(m); });
  }

  /// Both passes as a graph. Any wait or forbidden call in any thread ends the capture.
  cudaGraphExec_t capture() {
    cudaStream_t origin = native(memory_->make_stream());
    const Event begin;
    std::vector<Event> ends(members_.size());
    check(cudaStreamBeginCapture(origin, cudaStreamCaptureModeGlobal), "the begin of a capture");
    check(cudaEventRecord(begin.event, origin), "cudaEventRecord");
    std::exception_ptr failure;
    try {
      on_all_ranks([&](Member& m) {
        const cudaStream_t stream = native(m.rank.stream);
        check(cudaStreamWaitEvent(stream, begin.event), "cudaStreamWaitEvent");
        enqueue(m);
        check(cudaEventRecord(ends[static_cast<std::size_t>(m.rank.rank)].event, stream),
              "cudaEventRecord");
      });
      for (const Event& end : ends) check(cudaStreamWaitEvent(origin, end.event), "joining");
    } catch (...) {
      failure = std::current_exception();
    }
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(origin, &graph);
    (void)cudaGetLastError();
    memory_->destroy({origin});
    if (failure) std::rethrow_exception(failure);
    check(ended, "the end of a capture");
    cudaGraphExec_t executable = nullptr;
    check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    return executable;
  }

  /// The bytes of every output of every rank, in the order of outputs(m).
  std::vector<std::vector<std::byte>> outputs() {
    check(cudaDeviceSynchronize(), "the work of all ranks");
    std::vector<std::vector<std::byte>> all;
    for (Member& m : members_) {
      for (LocalTensor* t : outputs(m)) {
        std::vector<std::byte>& bytes = all.emplace_back(bytes_of(t->view()));
        memory_->download(bytes, data_of(t->argument()));
      }
    }
    return all;
  }

  /// Which outputs have other bytes: "rank 2 dkey (17 of 4096 bytes)".
  std::string differences(const std::vector<std::vector<std::byte>>& a,
                          const std::vector<std::vector<std::byte>>& b) const {
    static constexpr const char* kNames[] = {"out", "lse", "dkey", "dvalue", "dquery"};
    const std::size_t each = a.size() / members_.size();
    std::string text;
    for (std::size_t i = 0; i < a.size(); ++i) {
      std::size_t n = 0;
      for (std::size_t k = 0; k < a[i].size(); ++k) n += a[i][k] != b[i][k] ? 1 : 0;
      if (n == 0) continue;
      text += "rank " + std::to_string(i / each) + " " + kNames[i % each] + " (" +
              std::to_string(n) + " of " + std::to_string(a[i].size()) + " bytes) ";
    }
    return text;
  }

  /// Called by every rank before its passes: faults for the test of this test.
  std::function<void(cudaStream_t)> fault;

 private:
  struct Event {
    Event() { check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate"); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    ~Event() { (void)cudaEventDestroy(event); }
    cudaEvent_t event = nullptr;
  };
  struct Member {
    RingRank rank;
    std::deque<RingRank> sources;  // whose inputs are copied to rank's
    Allocation forward, backward;  // workspaces
  };

  /// Those whose bits the contract promises.
  std::vector<LocalTensor*> outputs(Member& m) const {
    std::vector<LocalTensor*> all{&m.rank.out, &m.rank.lse, &m.rank.dkey, &m.rank.dvalue};
    if (deterministic_) all.push_back(&m.rank.dquery);
    return all;
  }

  void copy(const ConstTensorView& to, const ConstTensorView& from) {
    memory_->copy(data_of(to), {data_of(from), bytes_of(from)}, {});
  }

  void enqueue(Member& m) {
    if (fault) fault(native(m.rank.stream));
    RingAttention& attention = *m.rank.attention;
    attention.forward(m.rank.forward_args(), {m.forward.get(), attention.forward_workspace_bytes()},
                      m.rank.stream);
    attention.backward(m.rank.backward_args(),
                       {m.backward.get(), attention.backward_workspace_bytes()}, m.rank.stream);
  }

  template <class Work>
  void on_all_ranks(const Work& work) {
    std::vector<std::exception_ptr> failures(members_.size());
    {
      std::vector<std::jthread> threads;
      for (std::size_t r = 0; r < members_.size(); ++r) {
        threads.emplace_back([&, r] {
          try {
            work(members_[r]);
          } catch (const std::exception& error) {
            failures[r] = std::current_exception();
            ring_[r]->abort(error.what());
          }
        });
      }
    }
    for (const std::exception_ptr& failure : failures) {
      if (failure) std::rethrow_exception(failure);
    }
  }

  Problem problem_;
  bool deterministic_;
  const Memory* memory_ = nullptr;
  std::vector<std::unique_ptr<Communicator>> ring_;
  std::deque<Member> members_;
};

std::vector<CaseData> three_sets(Case c) {
  std::vector<CaseData> data;
  for (c.seed = 1; c.seed <= 3; ++c.seed) data.push_back(make_data(c));
  return data;
}

void replay(const std::string& text, bool deterministic) {
  SCOPED_TRACE(text + (deterministic ? ", deterministic" : ""));
  const Case c = parse_case(text);
  GraphRing ring(c, three_sets(c), deterministic);
  std::vector<std::vector<std::vector<std::byte>>> expected;
  for (std::size_t set = 0; set < 3; ++set) {
    ring.load(set);
    ring.enqueue();
    expected.push_back(ring.outputs());
    ring.load(set);
    ring.enqueue();
    EXPECT_EQ(ring.differences(ring.outputs(), expected[set]), "") << "in a second plain call";
  }
  ASSERT_NE(expected[1], expected[2]);

  ring.load(0);
  const int before = allocations;
  const cudaGraphExec_t graph = ring.capture();
  EXPECT_EQ(allocations - before, 0) << "allocations while a stream is captured";
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  for (const std::size_t set : {1, 2}) {
    ring.load(set);
    check(cudaGraphLaunch(graph, stream), "cudaGraphLaunch");
    check(cudaStreamSynchronize(stream), "a replay");
    EXPECT_EQ(ring.differences(ring.outputs(), expected[set]), "") << "in replay " << set;
  }
  check(cudaGraphExecDestroy(graph), "cudaGraphExecDestroy");
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

TEST_F(CudaGraph, ReplaysGiveTheBitsOfPlainCalls) {
  for (const char* ring : {"", "_zigzag_r4"}) {
    for (const char* c :
         {"b2_sq700_h4x2_d128_bf16_causal_bwd", "sq520_h2_d64_bf16_bwd", "sq300_h2_d80_f32_bwd"}) {
      for (const bool deterministic : {false, true}) replay(std::string(c) + ring, deterministic);
    }
  }
}

TEST_F(CudaGraph, AWaitOrAnAllocationDuringCaptureIsSeen) {
  const Case c = parse_case("sq260_h2_d64_bf16_causal_r2_bwd");
  {
    GraphRing ring(c, three_sets(c), false);
    ring.fault = [](cudaStream_t stream) {
      check(cudaStreamSynchronize(stream), "waiting for a stream");
    };
    EXPECT_THROW(ring.capture(), Error);
  }
  GraphRing ring(c, three_sets(c), false);
  ring.enqueue();
  ring.outputs();
  Allocation wasted;
  std::once_flag once;
  ring.fault = [&](cudaStream_t) {
    std::call_once(once, [&] { wasted = allocate(cuda::device_memory(), 256); });
  };
  const int before = allocations;
  const cudaGraphExec_t graph = ring.capture();
  EXPECT_GT(allocations - before, 0);
  check(cudaGraphExecDestroy(graph), "cudaGraphExecDestroy");
}

}  // namespace
}  // namespace ringattn::support
