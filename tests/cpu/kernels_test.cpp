// SPDX-License-Identifier: Apache-2.0
// The innermost layer, for every instruction set that this machine runs.
#include "cpu/kernels.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numbers>
#include <random>
#include <vector>

#include "cpu/cpu.h"
#include "dtype.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RINGATTN_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define RINGATTN_SANITIZED 1
#endif
#endif

namespace ringattn::cpu {
namespace {

class Kernels : public ::testing::TestWithParam<std::string> {
 protected:
  const KernelTable& table() const { return *kernels("cpu:" + GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(EveryIsa, Kernels, ::testing::ValuesIn(instruction_sets()),
                         [](const auto& isa) { return isa.param; });

const std::map<DType, Format> kFormats = {{DType::kBFloat16, Format::kBFloat16},
                                          {DType::kFloat16, Format::kFloat16}};

/// Largest relative error of `f` against `exact` over every `step`-th float with bits [lo, hi].
template <class F, class Exact>
double worst(std::uint32_t lo, std::uint32_t hi, std::uint32_t step, F f, Exact exact) {
  double most = 0.0;
  float x[16];
  float y[16];
  for (std::uint64_t bits = lo; bits <= hi; bits += std::uint64_t{16} * step) {
    for (std::uint32_t i = 0; i < 16; ++i) {
      const std::uint64_t at = std::min<std::uint64_t>(bits + i * step, hi);
      x[i] = std::bit_cast<float>(static_cast<std::uint32_t>(at));
    }
    f(x, y, 16);
    for (int i = 0; i < 16; ++i) {
      const double truth = exact(static_cast<double>(x[i]));
      most = std::max(most, std::abs((static_cast<double>(y[i]) - truth) / truth));
    }
  }
  return most;
}

constexpr float kLn2 = std::numbers::ln2_v<float>;  // products are then scores in log2 units
constexpr double kUlp = 0x1p-24;                    // half a unit in the last place, relative

#if defined(__x86_64__) && !defined(RINGATTN_SANITIZED)
constexpr std::uint32_t kEvery = 1;  // float32 there is
#else
constexpr std::uint32_t kEvery = 997;  // slow: an emulator or a sanitizer
#endif

/// The largest error, in units of the last place of the true value, of every instruction set's
/// exponential over the floats with bits [lo, hi].
double worst_ulps(std::uint32_t lo, std::uint32_t hi) {
  std::vector<const KernelTable*> tables;
  for (const std::string& isa : instruction_sets()) tables.push_back(kernels("cpu:" + isa));
  constexpr int kBlock = 1024;
  float x[kBlock];
  float y[kBlock];
  double truth[kBlock];
  double scale[kBlock];  // 1 / ulp
  double most = 0.0;
  for (std::uint64_t bits = lo; bits <= hi; bits += std::uint64_t{kBlock} * kEvery) {
    for (std::uint32_t i = 0; i < kBlock; ++i) {
      const std::uint64_t at = std::min<std::uint64_t>(bits + std::uint64_t{i} * kEvery, hi);
      x[i] = std::bit_cast<float>(static_cast<std::uint32_t>(at));
      truth[i] = std::exp2(static_cast<double>(x[i]));
      const std::uint64_t exponent = std::bit_cast<std::uint64_t>(truth[i]) >> 52;
      scale[i] = std::bit_cast<double>((2046 + 23 - exponent) << 52);
    }
    for (const KernelTable* table : tables) {
      table->exp2(x, y, kBlock);
      for (int i = 0; i < kBlock; ++i) {
        most = std::max(most, std::abs(static_cast<double>(y[i]) - truth[i]) * scale[i]);
      }
    }
  }
  return most;
}

constexpr float kSmallest = 0x1p-27F;  // below it the result is 1, within 1e-8

TEST(Exp2, IsWithinOneAndAHalfUlpsForEveryFloatAboveZero) {
  const auto bits = [](float x) { return std::bit_cast<std::uint32_t>(x); };
  const double worst = worst_ulps(bits(kSmallest), bits(127.0F));
  RecordProperty("ulps", std::to_string(worst));
  EXPECT_LT(worst, 1.5);
}

TEST(Exp2, IsWithinOneAndAHalfUlpsForEveryFloatBelowZero) {
  const auto bits = [](float x) { return std::bit_cast<std::uint32_t>(x); };
  const double worst = worst_ulps(bits(-kSmallest), bits(-125.0F));
  RecordProperty("ulps", std::to_string(worst));
  EXPECT_LT(worst, 1.5);
}

TEST_P(Kernels, Exp2OfTheEnds) {
  const float inf = std::numeric_limits<float>::infinity();
  const float x[16] = {0.0F,    -0.0F,  1.0F, -1.0F, -inf, -126.0F, -1e30F, std::nanf(""),
                       -125.0F, 127.0F, 0.5F, -0.5F, 2.0F, -2.0F,   10.0F,  -10.0F};
  float y[16];
  table().exp2(x, y, 16);
  EXPECT_EQ(y[0], 1.0F);
  EXPECT_EQ(y[1], 1.0F);
  EXPECT_EQ(y[2], 2.0F);
  EXPECT_EQ(y[3], 0.5F);
  EXPECT_EQ(y[4], 0.0F);
  EXPECT_EQ(y[5], 0.0F);
  EXPECT_EQ(y[6], 0.0F);
  EXPECT_TRUE(std::isnan(y[7]));
  EXPECT_EQ(y[8], 0x1p-125F);
  EXPECT_EQ(y[9], 0x1p127F);
}

TEST_P(Kernels, Exp2KeepsEveryNaN) {
  constexpr std::uint32_t kQuiet = 0x7FC00000U;
  for (const std::uint32_t payload : {0x1U, 0x80U, 0x100U, 0x181U, 0x1FFU, 0x3FFFFFU}) {
    for (const std::uint32_t sign : {0U, 0x80000000U}) {
      const std::vector<float> x(16, std::bit_cast<float>(sign | kQuiet | payload));
      float y[16];
      table().exp2(x.data(), y, 16);
      EXPECT_TRUE(std::isnan(y[5])) << sign << " " << payload;
    }
  }
}

TEST_P(Kernels, TanhIsWithinSevenHalfUlps) {
  const auto exact = [](double x) { return std::tanh(x); };
  const auto bits = [](float x) { return std::bit_cast<std::uint32_t>(x); };
  EXPECT_LT(worst(bits(1e-9F), bits(50.0F), 5 * kEvery, table().tanh, exact), 7 * kUlp);
  EXPECT_LT(worst(bits(-1e-9F), bits(-50.0F), 5 * kEvery, table().tanh, exact), 7 * kUlp);
  const float inf = std::numeric_limits<float>::infinity();
  const float x[16] = {inf, -inf, std::nanf("1"), 0.0F};
  float y[16];
  table().tanh(x, y, 16);
  EXPECT_EQ(y[0], 1.0F);
  EXPECT_EQ(y[1], -1.0F);
  EXPECT_TRUE(std::isnan(y[2]));
  EXPECT_EQ(y[3], 0.0F);
}

TEST_P(Kernels, WidensEvery16BitValueExactly) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    std::vector<std::uint16_t> all(1 << 16);
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
    std::vector<float> wide(all.size());
    EXPECT_FALSE(
        table().widen({false, kFormats.at(dtype), all.data(), 16, 1 << 12, 16, wide.data(), 16}));
    for (std::size_t i = 0; i < all.size(); ++i) {
      const double expected = load(dtype, all.data(), static_cast<std::int64_t>(i));
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(wide[i])) << i;
      } else {
        ASSERT_EQ(static_cast<double>(wide[i]), expected) << i;
      }
    }
  }
}

TEST_P(Kernels, WidenNoticesWhatIsNotFiniteAndPadsWithZeros) {
  for (const std::int64_t columns : {1, 5, 16, 19, 33}) {
    std::vector<float> src(static_cast<std::size_t>(3 * 40), 2.0F);
    std::vector<float> dst(static_cast<std::size_t>(64 * 3), -7.0F);
    const Widen w{false, Format::kFloat32, src.data(), 40, 3, columns, dst.data(), 64};
    EXPECT_TRUE(table().widen(w));
    for (std::int64_t j = 0; j < padded(columns); ++j) {
      EXPECT_EQ(dst[static_cast<std::size_t>(2 * 64 + j)], j < columns ? 2.0F : 0.0F);
    }
    std::vector<float> turned(static_cast<std::size_t>(48 * 16), -7.0F);
    const Widen t{false, Format::kFloat32, src.data(), 40, 3, columns, turned.data(), 16};
    EXPECT_TRUE(table().widen_transposed(t));
    for (std::int64_t i = 0; i < 16; ++i) {
      EXPECT_EQ(turned[static_cast<std::size_t>((columns - 1) * 16 + i)], i < 3 ? 2.0F : 0.0F);
    }
    src[static_cast<std::size_t>(2 * 40 + columns - 1)] = std::numeric_limits<float>::infinity();
    EXPECT_FALSE(table().widen(w));
    EXPECT_FALSE(table().widen_transposed(t));
    src[static_cast<std::size_t>(2 * 40 + columns - 1)] = 0.0F;
    src[static_cast<std::size_t>(2 * 40 + columns)] = std::nanf("");  // beyond: not looked at
    EXPECT_TRUE(table().widen(w));
  }
}

TEST_P(Kernels, TransposesEveryElement) {
  for (const std::int64_t rows : {1, 7, 16, 37}) {
    for (const std::int64_t columns : {1, 4, 19, 64}) {
      std::vector<float> src(static_cast<std::size_t>(rows * columns));
      for (std::size_t i = 0; i < src.size(); ++i) src[i] = static_cast<float>(i + 1);
      const std::int64_t stride = row_stride(rows);
      std::vector<float> dst(static_cast<std::size_t>(columns * stride), -7.0F);
      table().widen_transposed(
          {false, Format::kFloat32, src.data(), columns, rows, columns, dst.data(), stride});
      for (std::int64_t j = 0; j < columns; ++j) {
        for (std::int64_t i = 0; i < padded(rows); ++i) {
          const float expected = i < rows ? src[static_cast<std::size_t>(i * columns + j)] : 0.0F;
          ASSERT_EQ(dst[static_cast<std::size_t>(j * stride + i)], expected) << i << " " << j;
        }
      }
    }
  }
}

TEST_P(Kernels, AfterPackingEveryNaNSurvivesTheExponential) {
  std::vector<float> src(16, 1.0F);
  src[5] = std::bit_cast<float>(0x7FC001FFU);  // its low bits would reach the exponent
  src[6] = std::bit_cast<float>(0xFF800001U);
  float dst[16];
  EXPECT_FALSE(table().widen({false, Format::kFloat32, src.data(), 16, 1, 16, dst, 16}));
  float y[16];
  table().exp2(dst, y, 16);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(std::isnan(y[i]), i == 5 || i == 6) << i;
}

std::vector<std::uint16_t> random_bf16(std::size_t n) {
  std::mt19937 random(5);
  std::vector<std::uint16_t> v(n);
  for (auto& x : v) x = float_to_bf16(static_cast<float>(static_cast<int>(random() % 257) - 128));
  return v;
}

/// Small integers: every product and sum is exact, in any order.
TEST_P(Kernels, PairsMultiplyAsTheirValuesDo) {
  if (table().pair_rows == nullptr) GTEST_SKIP() << GetParam() << " has no dot products of pairs";
  for (const std::int64_t depth : {1, 2, 31, 64, 75}) {
    const std::int64_t m = 13;
    const std::int64_t n = 37;
    const auto a = random_bf16(static_cast<std::size_t>(m * depth));
    const auto b = random_bf16(static_cast<std::size_t>(n * depth));
    const std::int64_t words = (depth + 1) / 2;
    std::vector<float> left(static_cast<std::size_t>(m * 48), -7.0F);
    std::vector<float> turned(static_cast<std::size_t>(words * 48), -7.0F);
    std::vector<float> right(static_cast<std::size_t>(words * 48), -7.0F);
    std::vector<float> c(static_cast<std::size_t>(m * 48));
    std::vector<float> c2(static_cast<std::size_t>(m * 48));
    const Format bf16 = Format::kBFloat16;
    EXPECT_TRUE(table().widen({true, bf16, a.data(), depth, m, depth, left.data(), 48}));
    EXPECT_TRUE(
        table().widen_transposed({true, bf16, b.data(), depth, n, depth, turned.data(), 48}));
    // The same b, as [depth, n] rows.
    std::vector<std::uint16_t> rows(b.size());
    for (std::int64_t j = 0; j < n; ++j) {
      for (std::int64_t k = 0; k < depth; ++k) {
        rows[static_cast<std::size_t>(k * n + j)] = b[static_cast<std::size_t>(j * depth + k)];
      }
    }
    EXPECT_TRUE(table().pair_rows({true, bf16, rows.data(), n, depth, n, right.data(), 48}));
    table().product(
        {true, left.data(), 48, false, turned.data(), 48, c.data(), 48, m, 48, words, false});
    table().product(
        {true, left.data(), 48, false, right.data(), 48, c2.data(), 48, m, 48, words, false});
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        double sum = 0.0;
        for (std::int64_t k = 0; k < depth; ++k) {
          sum += static_cast<double>(bf16_to_float(a[static_cast<std::size_t>(i * depth + k)])) *
                 bf16_to_float(b[static_cast<std::size_t>(j * depth + k)]);
        }
        ASSERT_EQ(c[static_cast<std::size_t>(i * 48 + j)], sum) << i << " " << j << " " << depth;
        ASSERT_EQ(c2[static_cast<std::size_t>(i * 48 + j)], sum) << i << " " << j << " " << depth;
      }
    }
  }
}

/// The same of a left side whose elements are sums of two words.
TEST_P(Kernels, PairsInTwoPartsMultiplyAsTheirSumsDo) {
  if (table().pair_rows == nullptr) GTEST_SKIP() << GetParam() << " has no dot products of pairs";
  for (const std::int64_t words : {1, 2, 31, 64, 75, 200}) {
    for (const std::int64_t n : {16, 48, 64, 80}) {
      const std::int64_t m = 13;
      const auto a = random_bf16(static_cast<std::size_t>(m * 4 * words));
      const auto b = random_bf16(static_cast<std::size_t>(n * 2 * words));
      std::vector<float> left(a.size() / 2);
      std::vector<float> right(b.size() / 2);
      std::memcpy(left.data(), a.data(), a.size() * 2);
      std::memcpy(right.data(), b.data(), b.size() * 2);
      std::vector<float> c(static_cast<std::size_t>(m * n), 3.0F);
      table().product({true,
                       left.data(),
                       2 * words,
                       false,
                       right.data(),
                       n,
                       c.data(),
                       n,
                       m,
                       n,
                       words,
                       true,
                       {},
                       true});
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
          double sum = 3.0;
          for (std::int64_t k = 0; k < 2 * words; ++k) {
            const auto at = static_cast<std::size_t>((i * 2 * words + k / 2 * 2) * 2 + k % 2);
            sum += (static_cast<double>(bf16_to_float(a[at])) + bf16_to_float(a[at + 2])) *
                   bf16_to_float(b[static_cast<std::size_t>((k / 2 * n + j) * 2 + k % 2)]);
          }
          ASSERT_EQ(c[static_cast<std::size_t>(i * n + j)], sum) << i << " " << j << " " << words;
        }
      }
    }
  }
}

TEST_P(Kernels, PairsNoticeWhatIsNotFinite) {
  if (table().pair_rows == nullptr) GTEST_SKIP() << GetParam() << " has no dot products of pairs";
  std::vector<float> dst(48 * 48);
  for (const std::size_t at : {0, 1, 20, 34}) {
    auto src = random_bf16(35);
    src[at] = 0x7F80;  // infinity
    const Widen w{true, Format::kBFloat16, src.data(), 7, 5, 7, dst.data(), 48};
    EXPECT_FALSE(table().widen(w)) << at;
    EXPECT_FALSE(table().widen_transposed(w)) << at;
    EXPECT_FALSE(table().pair_rows(w)) << at;
  }
}

std::vector<float> random_floats(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> v(n);
  for (float& x : v) x = static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 500.0F;
  return v;
}

TEST_P(Kernels, ProductsEqualPlainLoopsForEveryShapeAndStride) {
  for (const std::int64_t m : {1, 5, 6, 7, 12, 13, 29}) {
    for (const std::int64_t n : {16, 32, 48, 80}) {
      for (const std::int64_t depth : {0, 1, 15, 16, 17, 40, 200}) {
        for (const bool columns : {false, true}) {
          const auto a = random_floats(208 * 208, 1);
          const auto b = random_floats(static_cast<std::size_t>(208 * 80), 2);
          auto c = random_floats(static_cast<std::size_t>(m * 84), 3);
          const auto old = c;
          table().product(
              {false, a.data(), 208, columns, b.data(), 80, c.data(), 84, m, n, depth, true});
          for (std::int64_t i = 0; i < m; ++i) {
            for (std::int64_t j = 0; j < 84; ++j) {
              const auto at = static_cast<std::size_t>(i * 84 + j);
              if (j >= n) {
                ASSERT_EQ(c[at], old[at]) << "wrote beyond its columns";
                continue;
              }
              double sum = old[at];
              for (std::int64_t k = 0; k < depth; ++k) {
                const std::int64_t left = columns ? k * 208 + i : i * 208 + k;
                sum += static_cast<double>(a[static_cast<std::size_t>(left)]) *
                       b[static_cast<std::size_t>(k * 80 + j)];
              }
              // At most depth + 1 roundings of partial sums below 4 * depth + 2.
              const double bound = 2 * kUlp * static_cast<double>((depth + 1) * (4 * depth + 2));
              ASSERT_NEAR(c[at], sum, bound) << m << " " << n << " " << depth;
            }
          }
        }
      }
    }
  }
}

TEST_P(Kernels, SoftmaxKeepsItsStateOverTilesAndIgnoresMaskedScores) {
  const std::int64_t keys = 37;
  const std::int64_t stride = padded(keys) + 16;
  std::vector<float> first(static_cast<std::size_t>(stride), 3.0F);
  std::vector<float> second(static_cast<std::size_t>(stride), 15.0F);
  second[4] = std::nanf("");  // masked
  std::vector<std::uint64_t> bits = {0b1011};
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0.0F;
  float factor = 0.0F;
  table().softmax({false,
                   first.data(),
                   stride,
                   1,
                   keys,
                   nullptr,
                   0,
                   {kLn2, 0.0F},
                   &max,
                   &sum,
                   &factor,
                   nullptr});
  EXPECT_FLOAT_EQ(max, 3.0F);
  EXPECT_EQ(sum, 37.0F);
  EXPECT_EQ(first[36], 1.0F);
  EXPECT_EQ(first[37], 0.0F);
  table().softmax({false,
                   second.data(),
                   stride,
                   1,
                   keys,
                   bits.data(),
                   1,
                   {kLn2, 0.0F},
                   &max,
                   &sum,
                   &factor,
                   nullptr});
  EXPECT_FLOAT_EQ(max, 15.0F);
  EXPECT_FLOAT_EQ(factor, 0x1p-12F);
  EXPECT_FLOAT_EQ(sum, 37.0F * 0x1p-12F + 3.0F);
  EXPECT_EQ(second[2], 0.0F);
  EXPECT_EQ(second[4], 0.0F);
}

/// Against the conversion of one value, over floats of every exponent, at row ends of every length.
TEST_P(Kernels, NarrowRoundsAsOneValueDoes) {
  constexpr int kMost = 21;
  std::vector<float> x(kMost);
  std::vector<std::uint16_t> y(kMost + 1);
  const float factors[] = {1.0F, 3.0F};
  int n = 0;
  for (std::uint64_t bits = 0; bits <= 0xFFFFFFFFU; n = n % kMost + 1) {
    for (int i = 0; i < n; ++i, bits += 4099) {
      x[i] = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    }
    for (const auto& [dtype, format] : kFormats) {
      std::fill(y.begin(), y.end(), 0x1234);
      table().narrow({format, x.data(), n, 1, n, factors, 0, y.data(), n});
      for (int i = 0; i < n; ++i) {
        const std::uint16_t one =
            dtype == DType::kBFloat16 ? float_to_bf16(x[i]) : float_to_f16(x[i]);
        ASSERT_EQ(y[i], one) << name(dtype) << " of " << x[i];
      }
      ASSERT_EQ(y[n], 0x1234) << "beyond the end";
    }
  }
}

TEST_P(Kernels, NarrowTakesAFactorForEachRowOrForAll) {
  const float x[] = {1.0F, 2.0F, 3.0F, 4.0F};  // two rows of two
  const float factors[] = {10.0F, 100.0F};
  std::vector<float> y(6, -1.0F);  // rows three apart
  table().narrow({Format::kFloat32, x, 2, 2, 2, factors, 1, y.data(), 3});
  EXPECT_EQ(y, (std::vector{10.0F, 20.0F, -1.0F, 300.0F, 400.0F, -1.0F}));
  table().narrow({Format::kFloat32, x, 2, 2, 2, factors, 0, y.data(), 3});
  EXPECT_EQ(y, (std::vector{10.0F, 20.0F, -1.0F, 30.0F, 40.0F, -1.0F}));
}

TEST_P(Kernels, AReferenceThatIsNearlyTheMaximumStays) {
  std::vector<float> s(32, 5.0F);
  float max = 3.0F;
  float sum = 1.0F;
  float factor = 0.0F;
  const SoftmaxTile tile{false, s.data(),     32,   1,    32,      nullptr,
                         0,     {kLn2, 0.0F}, &max, &sum, &factor, nullptr};
  table().softmax(tile);
  EXPECT_EQ(max, 3.0F);
  EXPECT_EQ(factor, 1.0F);
  EXPECT_FLOAT_EQ(sum, 1.0F + 32 * 4.0F);
  s.assign(32, 5.0F);
  sum = 1.0F;
  EXPECT_EQ(table().softmax_again(tile), Trial::kDone);
  EXPECT_FLOAT_EQ(sum, 1.0F + 32 * 4.0F);
  s.assign(32, 5.0F);
  s[3] = 100.0F;
  EXPECT_EQ(table().softmax_again(tile), Trial::kSpoilt);
  s[3] = std::nanf("");
  EXPECT_EQ(table().softmax_again(tile), Trial::kSpoilt);
  EXPECT_FLOAT_EQ(sum, 1.0F + 32 * 4.0F) << "a trial in vain changes no state";
}

TEST_P(Kernels, RowsWithoutAReferenceTakeTheLargestOfTheirFirstScores) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> s(32, 5.0F);
  s[2] = 7.0F;
  s[20] = 9.0F;
  float max = -inf;
  float sum = 0.0F;
  float factor = 0.0F;
  const SoftmaxTile tile{false, s.data(),     32,   1,    32,      nullptr,
                         0,     {kLn2, 0.0F}, &max, &sum, &factor, nullptr};
  EXPECT_EQ(table().softmax_again(tile), Trial::kDone);
  EXPECT_FLOAT_EQ(max, 7.0F) << "that of sixteen, eight or four columns";
  EXPECT_FLOAT_EQ(sum, 30 * 0.25F + 1.0F + 4.0F);
  EXPECT_EQ(factor, 1.0F);
  s.assign(32, 5.0F);
  s[20] = 100.0F;
  max = -inf;
  sum = 0.0F;
  EXPECT_EQ(table().softmax_again(tile), Trial::kSpoilt);
  EXPECT_EQ(sum, 0.0F);
  s.assign(32, 5.0F);
  s[20] = 100.0F;
  table().softmax(tile);
  EXPECT_FLOAT_EQ(max, 100.0F);
  EXPECT_FLOAT_EQ(sum, 1.0F);
  for (const float none : {-inf, std::nanf("")}) {
    s.assign(32, none);
    max = -inf;
    EXPECT_NE(table().softmax_again(tile), Trial::kDone) << none;
  }
}

TEST_P(Kernels, PairsAddUpTheWeightsThatTheyStore) {
  if (table().pair_rows == nullptr) GTEST_SKIP() << GetParam() << " has no dot products of pairs";
  for (const std::int64_t keys : {16, 64, 80}) {
    std::vector<float> s(static_cast<std::size_t>(keys));
    for (std::size_t i = 0; i < s.size(); ++i) s[i] = static_cast<float>(i) * -0.137F;
    float max = 0.3F;
    float sum = 1.0F;
    float factor = 0.0F;
    float rounded = 1.0F;
    const SoftmaxTile tile{true, s.data(),     keys, 1,    keys,    nullptr,
                           0,    {kLn2, 0.0F}, &max, &sum, &factor, &rounded};
    EXPECT_EQ(table().softmax_again(tile), Trial::kDone);
    const auto* stored = reinterpret_cast<const std::uint16_t*>(s.data());
    float truth = 1.0F;
    for (std::int64_t i = 0; i < keys; ++i) truth += bf16_to_float(stored[i]);
    EXPECT_FLOAT_EQ(rounded, truth);
    EXPECT_NE(rounded, sum);
    EXPECT_NEAR(rounded, sum, 0x1p-9F * sum);
  }
}

/// Element j of words that each hold one part of two neighbours, high parts and low ones in turn.
float sum_of_parts(const float* words, std::int64_t j) {
  const auto* halves = reinterpret_cast<const std::uint16_t*>(words + j / 2 * 2) + j % 2;
  return bf16_to_float(halves[0]) + bf16_to_float(halves[2]);
}

TEST_P(Kernels, WeightsInTwoPartsAreWithinTwoToTheMinus16) {
  if (table().pair_rows == nullptr) GTEST_SKIP() << GetParam() << " has no dot products of pairs";
  const std::int64_t keys = 80;
  std::vector<float> s(static_cast<std::size_t>(keys));
  for (std::size_t i = 0; i < s.size(); ++i) s[i] = static_cast<float>(i) * -0.137F;
  for (const bool again : {false, true}) {
    const auto weigh = [&](std::vector<float>& x, bool pairs) {
      float max = 0.3F;
      float sum = 1.0F;
      float factor = 0.0F;
      float rounded = 1.0F;
      const SoftmaxTile tile{pairs,        x.data(), keys, 1,       keys,     nullptr, 0,
                             {kLn2, 0.0F}, &max,     &sum, &factor, &rounded, pairs};
      if (again) {
        EXPECT_EQ(table().softmax_again(tile), Trial::kDone);
      } else {
        table().softmax(tile);
      }
      EXPECT_EQ(rounded, pairs ? sum : 1.0F);
      return sum;
    };
    auto exact = s;
    auto parts = s;
    EXPECT_EQ(weigh(exact, false), weigh(parts, true));
    for (std::int64_t j = 0; j < keys; ++j) {
      const float truth = exact[static_cast<std::size_t>(j)];
      EXPECT_NEAR(sum_of_parts(parts.data(), j), truth, 0x1p-16F * truth) << j;
    }
  }
}

/// An odd number of rows, and columns behind the last key.
TEST_P(Kernels, GradientsOfPairsAreThoseOfFloatsForKeysRoundedForQueriesInTwoParts) {
  if (table().pair_rows == nullptr) GTEST_SKIP() << GetParam() << " has no dot products of pairs";
  constexpr std::int64_t kRows = 5;
  constexpr std::int64_t kKeys = 70;
  constexpr std::int64_t kStride = 80;
  const std::vector<float> lse(kRows, 2.5F);
  const std::vector<float> delta = random_floats(kRows, 3);
  std::vector<float> s[2];
  std::vector<float> dp[2];
  for (const bool pairs : {false, true}) {
    s[pairs] = random_floats((kRows + 1) * kStride, 1);
    dp[pairs] = random_floats(kRows * kStride, 2);
    table().gradient({pairs,
                      s[pairs].data(),
                      dp[pairs].data(),
                      kStride,
                      kRows,
                      kKeys,
                      nullptr,
                      0,
                      {1.0F, 0.0F},
                      lse.data(),
                      delta.data()});
  }
  const auto at = [](std::int64_t i, std::int64_t j) {
    return static_cast<std::size_t>(i * kStride + j);
  };
  const auto rounded = [](float x) { return bf16_to_float(float_to_bf16(x)); };
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (std::int64_t j = 0; j < kStride; ++j) {
      const float p = s[0][at(i, j)];
      const float ds = dp[0][at(i, j)];
      const auto half = [&](std::int64_t row) {
        std::uint16_t halves[2];
        std::memcpy(halves, &s[1][at(row, j)], sizeof halves);
        return bf16_to_float(halves[i % 2]);
      };
      ASSERT_EQ(half(i / 2 * 2), rounded(p)) << i << " " << j;
      ASSERT_EQ(half(i / 2 * 2 + 1), rounded(ds)) << i << " " << j;
      ASSERT_NEAR(sum_of_parts(dp[1].data() + i * kStride, j), ds, 0x1p-16F * std::fabs(ds));
    }
  }
}

TEST_P(Kernels, DotsOfRowsAreThoseOfFloat64) {
  std::mt19937 random(3);
  for (const std::int64_t n : {1, 8, 19, 64}) {
    std::vector<float> a(static_cast<std::size_t>(5 * 70));
    std::vector<std::uint16_t> b(static_cast<std::size_t>(5 * 80));
    for (float& x : a) x = static_cast<float>(random() % 2001) * 1e-3F - 1.0F;
    for (std::uint16_t& x : b) x = float_to_bf16(static_cast<float>(random() % 201) * 0.01F - 1.0F);
    std::fill_n(a.begin() + 140, n, -0.0F);  // row 2; the others' zeros are not all of a row
    double dot[5];
    bool zero[5];
    table().dot_rows(
        {Format::kFloat32, a.data(), 70, Format::kBFloat16, b.data(), 80, 5, n, dot, zero});
    for (std::size_t i = 0; i < 5; ++i) {
      double truth = 0.0;
      for (std::size_t j = 0; j < static_cast<std::size_t>(n); ++j) {
        truth += static_cast<double>(a[i * 70 + j]) * bf16_to_float(b[i * 80 + j]);
      }
      EXPECT_NEAR(dot[i], truth, 1e-13);
      EXPECT_EQ(zero[i], i == 2) << n;
    }
    a[static_cast<std::size_t>(140 + n - 1)] = std::nanf("");
    table().dot_rows(
        {Format::kFloat32, a.data(), 70, Format::kBFloat16, b.data(), 80, 5, n, dot, zero});
    EXPECT_FALSE(zero[2]);
    EXPECT_TRUE(std::isnan(dot[2]));
  }
}

TEST_P(Kernels, FinishIsWithinAnUlpAndAHalfOfTheLogarithm) {
  constexpr std::int64_t kRows = 19;  // several vectors and a rest
  std::mt19937 random(7);
  std::vector<float> max(kRows);
  std::vector<float> sum(kRows);
  std::vector<float> factor(kRows);
  std::vector<float> lse(kRows);
  const Finish rows{max.data(), sum.data(), kRows, factor.data(), lse.data(), sum.data()};
  double most = 0.0;
  for (int n = 0; n < 20'000; ++n) {
    for (float& x : sum) {
      x = n % 2 == 0 ? std::bit_cast<float>(0x00800000U +
                                            static_cast<std::uint32_t>(random() % 0x7F000000U))
                     : 1.0F + static_cast<float>(random() % 2000) * 1e-5F - 0.01F;
    }
    ASSERT_TRUE(table().finish(rows));
    for (std::size_t i = 0; i < sum.size(); ++i) {
      ASSERT_EQ(factor[i], 1.0F / sum[i]);
      const double truth = std::log(static_cast<double>(sum[i]));
      const auto nearest = static_cast<float>(std::abs(truth));
      const double ulp = std::nextafter(nearest, 1e30F) - nearest;
      most = std::max(most, std::abs(static_cast<double>(lse[i]) - truth) / ulp);
    }
  }
  EXPECT_LT(most, 1.5);
  max.assign(kRows, 3.0F);
  sum.assign(kRows, 1.0F);
  ASSERT_TRUE(table().finish(rows));
  EXPECT_FLOAT_EQ(lse[kRows - 1], 3.0F * kLn2);
  for (const float odd : {0.0F, 0x1p-127F, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    sum[kRows - 1] = odd;
    EXPECT_FALSE(table().finish(rows)) << odd;
  }
}

TEST_P(Kernels, ScoresOfAnySizeAboveTheReferenceAreNotTakenForSmallOnes) {
  for (const float large : {45.0F, 127.0F, 128.0F, 129.0F, 200.0F, 256.0F, 300.0F, 1e4F, 1e9F,
                            3e38F, std::numeric_limits<float>::infinity()}) {
    std::vector<float> s(32, 1.0F);
    s[20] = large;
    float max = 0.0F;
    float sum = 1.0F;
    float factor = 1.0F;
    EXPECT_EQ(
        table().softmax_again(
            {false, s.data(), 32, 1, 32, nullptr, 0, {kLn2, 0.0F}, &max, &sum, &factor, nullptr}),
        Trial::kSpoilt)
        << large;
    EXPECT_EQ(sum, 1.0F);
  }
}

TEST_P(Kernels, RowsThatSeeNothingKeepAnEmptyState) {
  std::vector<float> s(64, 9.0F);
  const std::uint64_t none = 0;
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0.0F;
  float factor = 0.0F;
  table().softmax(
      {false, s.data(), 48, 1, 20, &none, 1, {kLn2, 0.0F}, &max, &sum, &factor, nullptr});
  EXPECT_EQ(max, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(sum, 0.0F);
  EXPECT_EQ(factor, 1.0F);
  EXPECT_EQ(s[3], 0.0F);
}

}  // namespace
}  // namespace ringattn::cpu
