// SPDX-License-Identifier: Apache-2.0
#include "support/cases.h"

#include <gtest/gtest.h>

#include "ringattn/error.h"
#include "support/data.h"
#include "support/random.h"

namespace ringattn::support {
namespace {

std::string error_of(const std::string& text) {
  try {
    parse_case(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "";
}

TEST(Cases, ReadTheExampleOfTheirGrammar) {
  const Case c = parse_case("b2_sq8192_h32x8_d128_bf16_causal_w4096,0_zigzag_r4");
  EXPECT_EQ(c.batch, 2);
  EXPECT_EQ(c.query_seq, 8192);
  EXPECT_EQ(c.key_seq, 8192);
  EXPECT_EQ(c.query_heads, 32);
  EXPECT_EQ(c.kv_heads, 8);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.value_dim, 128);
  EXPECT_EQ(c.dtype, DType::kBFloat16);
  EXPECT_TRUE(c.causal);
  EXPECT_EQ(c.window->first, 4096);
  EXPECT_EQ(c.window->second, 0);
  EXPECT_EQ(c.layout, Layout::kZigzag);
  EXPECT_EQ(c.ring, 4);
}

TEST(Cases, FieldsComeInAnyOrder) {
  EXPECT_EQ(parse_case("r4_zigzag_w4096,0_causal_bf16_d128_h32x8_sq8192_b2"),
            parse_case("b2_sq8192_h32x8_d128_bf16_causal_w4096,0_zigzag_r4"));
}

TEST(Cases, WindowsHaveTwoSidesAndEitherMayBeOpen) {
  EXPECT_EQ(parse_case("sq9_w5").window, (std::pair<Case::Side, Case::Side>{5, 5}));
  EXPECT_EQ(parse_case("sq9_wnone,3").window, (std::pair<Case::Side, Case::Side>{std::nullopt, 3}));
  EXPECT_EQ(parse_case("sq9_w3,none").window, (std::pair<Case::Side, Case::Side>{3, std::nullopt}));
}

TEST(Cases, PrintAndReadBackTheSame) {
  for (std::uint64_t seed = 0; seed < 5000; ++seed) {
    const Case c = random_case(seed);
    ASSERT_EQ(parse_case(to_string(c)), c) << to_string(c);
  }
}

TEST(Cases, RandomOnesCoverEveryField) {
  Case seen;
  bool none_seen[4] = {};
  int rings = 0;
  for (std::uint64_t seed = 0; seed < 5000; ++seed) {
    const Case c = random_case(seed);
    rings |= 1 << c.ring;
    seen.causal |= c.causal;
    seen.backward |= c.backward;
    seen.dlse |= c.dlse;
    seen.infinite_sinks |= c.infinite_sinks;
    none_seen[0] |= c.key_seq == 0;
    none_seen[1] |= c.batch == 0;
    none_seen[2] |= c.window.has_value() && c.window->first == 0 && c.window->second == 0;
    none_seen[3] |= c.query_seq > 0 && c.query_seq < c.ring;
  }
  EXPECT_EQ(rings, 0b111111110);
  EXPECT_TRUE(seen.causal && seen.backward && seen.dlse && seen.infinite_sinks);
  for (bool none : none_seen) EXPECT_TRUE(none);
}

TEST(Cases, RefuseByTheNameOfTheField) {
  EXPECT_NE(error_of("sq8_w-1").find("'w-1'"), std::string::npos);
  EXPECT_NE(error_of("sq8_sq9").find("'sq9': given twice"), std::string::npos);
  EXPECT_NE(error_of("sq8_f32_bf16").find("'bf16'"), std::string::npos);
  EXPECT_NE(error_of("sq8_bogus").find("'bogus'"), std::string::npos);
  EXPECT_NE(error_of("h2_d8").find("'sq': missing"), std::string::npos);
  EXPECT_NE(error_of("sq8_h4_sink4").find("write sink"), std::string::npos);
  EXPECT_NE(error_of("sq8_dlse").find("bwd"), std::string::npos);
  EXPECT_NE(error_of("sq8_infsink").find("'infsink'"), std::string::npos);
}

TEST(Cases, HostileStringsAreErrors) {
  for (const std::string& text :
       {std::string(), std::string("_"), std::string("sq8_"), std::string("sq8__d4"),
        std::string("sq99999999999999999999"), std::string("sq-1"), std::string("sq8x"),
        std::string("sq8_h"), std::string("sq8_hx2"), std::string("sq8_h2x"),
        std::string("sq8_capnan"), std::string("sq8_scaleinf"), std::string("sq8_w,"),
        std::string("sq8_r99999999"), std::string("sq8_sinkhx"), std::string("sq8\0_d4", 7),
        std::string(1 << 20, 'b'), "sq8" + std::string(5000, '_')}) {
    EXPECT_NE(error_of(text), "") << text.substr(0, 40);
    EXPECT_LT(error_of(text).size(), 400U);
  }
}

TEST(Cases, DataOfImpossibleSizesIsRefusedBeforeItIsMade) {
  EXPECT_THROW(make_data(parse_case("b1000000_sq1000000000_h1000_d512")), Error);
}

TEST(Data, IsTheSameEverywhere) {
  EXPECT_EQ(random_bits(1, 2, 3), random_bits(1, 2, 3));
  EXPECT_NE(random_bits(1, 2, 3), random_bits(1, 2, 4));
  EXPECT_EQ(mix(0), 0xE220A8397B1DCDAFULL);  // the first output of SplitMix64 seeded with 0
  double sum = 0.0;
  double squares = 0.0;
  constexpr int kCount = 100000;
  for (std::uint64_t i = 0; i < kCount; ++i) {
    const double x = random_normal(7, 1, i);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kCount, 0.0, 4.0 / 316.0);  // four standard errors
  EXPECT_NEAR(squares / kCount, 1.0, 4.0 * 1.41 / 316.0);
}

}  // namespace
}  // namespace ringattn::support
