// SPDX-License-Identifier: Apache-2.0
// The judge must condemn: errors of the kind that tests exist for are found.
#include "support/compare.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/conformance.h"
#include "support/data.h"
#include "support/local_tensor.h"

namespace ringattn::support {
namespace {

struct Judged {
  Case c;
  CaseData data;
  Problem problem;
  Options options;
  Expected expected;

  explicit Judged(const char* text)
      : c(parse_case(text)),
        data(make_data(c)),
        problem(make_problem(c)),
        options(make_options(c, data)),
        expected(make_expected(problem, options, data.inputs(), c.backward)) {}

  bool accepts(const HostTensor& out) const {
    return compare("out", out, expected.truth.out, expected.naive.out,
                   error_model("out", problem, expected.naive.magnitudes))
        .ok;
  }
};

TEST(Compare, AcceptsTheNaiveProgramItself) {
  for (const char* text : {"sq64_h2_d32_causal", "sq64_h2_d32_bf16_causal", "sq64_h2_d32_f16"}) {
    const Judged judged(text);
    EXPECT_TRUE(judged.accepts(judged.expected.naive.out)) << text;
  }
}

TEST(Compare, FindsAWindowThatIsOneTooLong) {
  for (const char* dtype : {"", "_bf16", "_f16"}) {
    const Judged right(("sq200_h2_d32_causal_w40,0" + std::string(dtype)).c_str());
    const Judged wrong(("sq200_h2_d32_causal_w41,0" + std::string(dtype)).c_str());
    EXPECT_FALSE(right.accepts(wrong.expected.naive.out)) << dtype;
  }
}

TEST(Compare, FindsOneWrongElement) {
  const Judged judged("sq200_h2_d32_causal");
  HostTensor out = judged.expected.naive.out;
  out.as<float>()[5000] += 1e-5F;
  EXPECT_FALSE(judged.accepts(out));
}

TEST(Compare, FindsAnErrorThatGrowsWithTheRing) {
  const Judged judged("sq200_h2_d32_bf16_causal");
  const ErrorModel model = error_model("out", judged.problem, judged.expected.naive.magnitudes);
  const HostTensor& one = judged.expected.naive.out;
  HostTensor rounded_often = one;
  for (std::int64_t n = 0; n < one.elements(); ++n) {  // a ring that rounds on every hop
    rounded_often.as<std::uint16_t>()[n] += 3;         // units in the last place
  }
  EXPECT_TRUE(compare_ring("out", one, one, judged.expected.truth.out, model).ok);
  EXPECT_FALSE(compare_ring("out", rounded_often, one, judged.expected.truth.out, model).ok);
}

TEST(Compare, LooksAtThePatternFirst) {
  const Judged judged("sq20_h2_d8");
  HostTensor out = judged.expected.naive.out;
  out.as<float>()[3] = std::numeric_limits<float>::quiet_NaN();
  const Comparison c =
      compare("out", out, judged.expected.truth.out, judged.expected.naive.out, {});
  EXPECT_FALSE(c.ok);
  EXPECT_NE(c.message.find("[0, 0, 0, 3] is nan"), std::string::npos) << c.message;
}

TEST(LocalTensor, KnowsWhenAByteBesideItWasWritten) {
  for (Guard guard : {Guard::kOdd, Guard::kAligned}) {
    LocalTensor t(DType::kFloat32, {2, 3, 2, 8}, guard);
    EXPECT_TRUE(t.intact());
    auto* data = static_cast<float*>(t.view().data);
    data[0] = 1.0F;
    EXPECT_TRUE(t.intact());
    for (std::int64_t beside : {std::int64_t{-1}, std::int64_t{8}, t.view().stride(0) - 1}) {
      const float before = data[beside];
      data[beside] = 0.0F;
      EXPECT_FALSE(t.intact()) << beside;
      data[beside] = before;
    }
  }
}

TEST(LocalTensor, HasAlignedRowsWhereThatIsAskedFor) {
  LocalTensor t(DType::kFloat16, {2, 3, 2, 8}, Guard::kAligned);
  const TensorView v = t.view();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(v.data) % 16, 0U);
  for (int d : {0, 1, 2}) EXPECT_EQ(v.stride(d) * 2 % 16, 0) << d;
  EXPECT_NE(LocalTensor(DType::kFloat16, {2, 3, 2, 8}, Guard::kOdd).view().stride(1) * 2 % 16, 0);
}

}  // namespace
}  // namespace ringattn::support
