// SPDX-License-Identifier: Apache-2.0
// The public calls on one device: workspaces, views, convenience calls, and what they allocate.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <new>
#include <utility>
#include <vector>

#include "io/host_tensor.h"
#include "ringattn/attention.h"
#include "ringattn/version.h"

namespace {
std::atomic<std::int64_t> allocations{0};
}

// Counts what a call allocates. GoogleTest and the standard library go through it as well. Not
// inlined: the compiler would take new and free for a mismatched pair.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes == 0 ? 1 : bytes)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace ringattn {
namespace {

/// q, k, v, dout and room for results; 2 query heads on 1 kv head.
struct Tensors {
  explicit Tensors(std::int64_t seq)
      : q(DType::kFloat32, {1, seq, 2, 8}),
        k(DType::kFloat32, {1, seq, 1, 8}),
        v(DType::kFloat32, {1, seq, 1, 8}),
        dout(DType::kFloat32, {1, seq, 2, 8}),
        out(DType::kFloat32, {1, seq, 2, 8}),
        lse(DType::kFloat32, {1, 2, seq}),
        dq(DType::kFloat32, {1, seq, 2, 8}),
        dk(DType::kFloat32, {1, seq, 1, 8}),
        dv(DType::kFloat32, {1, seq, 1, 8}) {
    for (HostTensor* t : {&q, &k, &v, &dout}) {
      for (std::int64_t i = 0; i < t->elements(); ++i) {
        t->as<float>()[i] = std::sin(static_cast<float>(i) * 0.37F);
      }
    }
  }

  ForwardArgs forward() {
    ForwardArgs a;
    a.query = q.view();
    a.key = k.view();
    a.value = v.view();
    a.out = out.view();
    a.lse = lse.view();
    return a;
  }

  BackwardArgs backward() {
    BackwardArgs a;
    a.query = q.view();
    a.key = k.view();
    a.value = v.view();
    a.out = out.view();
    a.lse = lse.view();
    a.dout = dout.view();
    a.dquery = dq.view();
    a.dkey = dk.view();
    a.dvalue = dv.view();
    return a;
  }

  HostTensor q, k, v, dout, out, lse, dq, dk, dv;
};

Problem problem_of(std::int64_t seq) {
  Problem p;
  p.query_seq = p.key_seq = seq;
  p.query_heads = 2;
  p.kv_heads = 1;
  p.head_dim = 8;
  return p;
}

std::string message_of(const std::function<void()>& call, ErrorCode code) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Api, NothingIsAllocatedAfterConstructionWithAGivenWorkspace) {
  Tensors t(200);
  RingAttention attention(problem_of(200), {.mask = Mask::causal()});
  const std::size_t bytes =
      std::max(attention.forward_workspace_bytes(), attention.backward_workspace_bytes());
  HostTensor room(DType::kBool, {static_cast<std::int64_t>(bytes) + 64});
  auto* aligned =
      reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(room.data()) + 63) / 64 * 64);
  attention.forward(t.forward(), {aligned, bytes});  // starts the shared pool's threads
  const std::int64_t before = allocations;
  attention.forward(t.forward(), {aligned, bytes});
  const std::int64_t after_forward = allocations;
  attention.backward(t.backward(), {aligned, bytes});
  // The pool's list node and the two travellers' small vectors are all that may come.
  EXPECT_LE(after_forward - before, 8);
  EXPECT_LE(allocations - after_forward, 16);
}

TEST(Api, WritesNothingOutsideTheWorkspace) {
  Tensors t(100);
  RingAttention attention(problem_of(100));
  const std::size_t bytes = attention.backward_workspace_bytes();
  std::vector<std::byte> room(bytes + 256, std::byte{0xA5});
  auto* aligned =
      reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(room.data()) + 63) / 64 * 64);
  attention.forward(t.forward());
  attention.backward(t.backward(), {aligned, bytes});
  for (std::byte* p = aligned + bytes; p < room.data() + room.size(); ++p) {
    ASSERT_EQ(*p, std::byte{0xA5});
  }
}

TEST(Api, RefusesSmallAndMisalignedWorkspaces) {
  Tensors t(64);
  RingAttention attention(problem_of(64));
  std::vector<std::byte> room(attention.forward_workspace_bytes() + 128);
  auto* aligned =
      reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(room.data()) + 63) / 64 * 64);
  const auto text = message_of(
      [&] {
        attention.forward(t.forward(), {aligned, 64});
      },
      ErrorCode::kInvalidArgument);
  EXPECT_NE(text.find("workspace: expected"), std::string::npos) << text;
  EXPECT_NE(text.find("got 64"), std::string::npos) << text;
  const auto shifted = message_of(
      [&] {
        attention.forward(t.forward(), {aligned + 4, attention.forward_workspace_bytes()});
      },
      ErrorCode::kInvalidArgument);
  EXPECT_NE(shifted.find("not so aligned"), std::string::npos) << shifted;
}

TEST(Api, OneCallEqualsThePlannedOne) {
  Tensors planned(90);
  Tensors once(90);
  const Options options{.mask = Mask::causal() & Mask::window(20, 0)};
  RingAttention attention_planned(problem_of(90), options);
  attention_planned.forward(planned.forward());
  attention_planned.backward(planned.backward());
  attention(once.forward(), options);
  attention_backward(once.backward(), options);
  for (const auto& [a, b] : {std::pair{&planned.out, &once.out},
                             {&planned.dq, &once.dq},
                             {&planned.dk, &once.dk},
                             {&planned.dv, &once.dv}}) {
    EXPECT_TRUE(std::equal(a->data(), a->data() + a->size_bytes(), b->data()));
  }
}

TEST(Api, NamesTheTensorThatIsWrong) {
  Tensors t(16);
  RingAttention attention(problem_of(16));
  const auto forward = [&](const std::function<void(ForwardArgs&)>& change) {
    return message_of(
        [&] {
          ForwardArgs args = t.forward();
          change(args);
          attention.forward(args);
        },
        ErrorCode::kInvalidArgument);
  };
  HostTensor bf16(DType::kBFloat16, {1, 16, 1, 8});
  HostTensor ids(DType::kInt32, {1, 16});
  HostTensor empty(DType::kFloat32, {0});
  EXPECT_EQ(forward([](ForwardArgs& a) { a.query = {}; }),
            "query: expected a tensor of shape [1, 16, 2, 8], got none");
  EXPECT_EQ(forward([](ForwardArgs& a) { a.value.shape[1] = 15; }),
            "value: expected shape [1, 16, 1, 8], got [1, 15, 1, 8]");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.key = bf16.view(); }),
            "key: expected dtype f32, got bf16");
  EXPECT_EQ(forward([](ForwardArgs& a) { a.query.strides[3] = 2; }),
            "query: expected a contiguous last dimension (stride 1), got stride 2");
  EXPECT_EQ(forward([](ForwardArgs& a) { a.key.data = nullptr; }),
            "key: expected memory for 128 elements, got null");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.q_segment_ids = ids.view(); }),
            "q_segment_ids: expected none, as Options::segment_ids is false, got [1, 16]");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.sinks = empty.view(); }),
            "softmax_aux: expected shape [2], [S] or [2, S], got [0]");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.sinks = ids.view(); }),
            "softmax_aux: expected a float dtype, got i32");
  EXPECT_EQ(forward([](ForwardArgs& a) { a.out.dtype = DType::kFloat64; }),
            "out: expected dtype f32, got f64");
  EXPECT_EQ(forward([](ForwardArgs& a) { a.lse.shape[2] = 3; }),
            "lse: expected shape [1, 2, 16], got [1, 2, 3]");
  EXPECT_EQ(message_of(
                [&] {
                  BackwardArgs args = t.backward();
                  args.lse = {};
                  attention.backward(args);
                },
                ErrorCode::kInvalidArgument),
            "lse: expected a tensor of shape [1, 2, 16], got none");
}

TEST(Api, SegmentIdsOfOneSideServeBothOnlyForEqualLengths) {
  Tensors t(16);
  HostTensor ids(DType::kInt32, {1, 16});
  ForwardArgs args = t.forward();
  args.kv_segment_ids = ids.view();
  EXPECT_NO_THROW(attention(args));
  HostTensor longer(DType::kFloat32, {1, 20, 1, 8});
  HostTensor longer_ids(DType::kInt32, {1, 20});
  args.key = longer.view();
  args.value = longer.view();
  args.kv_segment_ids = longer_ids.view();
  const auto text = message_of([&] { attention(args); }, ErrorCode::kInvalidArgument);
  EXPECT_NE(text.find("q_segment_ids: expected ids for both sides"), std::string::npos) << text;
}

TEST(Api, SegmentIdsMayLieApart) {
  constexpr std::int64_t kSeq = 40;
  Tensors t(kSeq);
  HostTensor together(DType::kInt32, {1, kSeq});
  HostTensor apart(DType::kInt32, {1, kSeq, 3});
  for (std::int64_t i = 0; i < kSeq; ++i) {
    const auto id = static_cast<std::int32_t>(i / 7 % 4) - 1;
    together.as<std::int32_t>()[i] = id;
    for (int n = 0; n < 3; ++n) apart.as<std::int32_t>()[3 * i + n] = n == 1 ? id : 9;
  }
  ConstTensorView view(apart.as<std::int32_t>() + 1, DType::kInt32, {1, kSeq});
  view.strides[1] = 3;
  const auto results = [&](const ConstTensorView& ids) {
    ForwardArgs forward = t.forward();
    forward.q_segment_ids = ids;
    attention(forward);
    BackwardArgs backward = t.backward();
    backward.q_segment_ids = ids;
    attention_backward(backward);
    std::vector<float> all;
    for (HostTensor* x : {&t.out, &t.dq, &t.dk, &t.dv}) {
      all.insert(all.end(), x->as<float>(), x->as<float>() + x->elements());
    }
    return all;
  };
  EXPECT_EQ(results(view), results(together.view()));
}

TEST(Api, ListsBackendsAndWhyOneIsAbsent) {
  const auto list = backends();
  const auto find = [&](const char* name) {
    const auto it = std::find_if(list.begin(), list.end(),
                                 [&](const BackendInfo& b) { return b.name == name; });
    EXPECT_NE(it, list.end()) << name;
    return it == list.end() ? BackendInfo() : *it;
  };
  const BackendInfo cpu = find("cpu");
  EXPECT_TRUE(cpu.available);
  ASSERT_FALSE(cpu.instruction_sets.empty());
  EXPECT_EQ(cpu.instruction_sets.back(), "baseline");
  EXPECT_TRUE(find("reference").available);
  const BackendInfo cuda = find("cuda");
  EXPECT_EQ(cuda.available, cuda.reason.empty());
  EXPECT_STRNE(RINGATTN_VERSION, "");
}

}  // namespace
}  // namespace ringattn
