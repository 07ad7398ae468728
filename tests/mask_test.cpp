// SPDX-License-Identifier: Apache-2.0
// Masks: the definition, its algebra, and its compilation to blocks.
#include "ringattn/mask.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "bitmap.h"
#include "ringattn/error.h"

namespace ringattn {
namespace {

constexpr std::int64_t kMax = INT64_MAX;
constexpr std::int64_t kMin = INT64_MIN;

/// The contract's words, one by one (docs/contract.md, arguments).
bool by_contract(const IntervalMask& m, std::int64_t q, std::int64_t k) {
  if (m.left != IntervalMask::kUnbounded && k < q - m.left) return false;
  if (m.right != IntervalMask::kUnbounded && k > q + m.right) return false;
  return m.chunk == 0 || floor_div(q, m.chunk) == floor_div(k, m.chunk);
}

IntervalMask random_interval(std::mt19937& random) {
  const auto side = [&]() -> std::int64_t {
    return random() % 3 == 0 ? IntervalMask::kUnbounded : random() % 12;
  };
  const auto chunk = static_cast<std::int64_t>(random() % 2 == 0 ? 0 : 1 + random() % 9);
  return {side(), side(), chunk};
}

TEST(Mask, RowHoldsExactlyTheVisibleKeys) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 300; ++trial) {
    const IntervalMask m = random_interval(random);
    for (std::int64_t q = -15; q < 15; ++q) {
      for (std::int64_t k = -40; k < 40; ++k) {
        ASSERT_EQ(m.row(q).contains(k), by_contract(m, q, k))
            << "left " << m.left << " right " << m.right << " chunk " << m.chunk << " q " << q
            << " k " << k;
      }
    }
  }
}

TEST(Mask, TransposedRowHoldsTheQueriesThatSeeAKey) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 200; ++trial) {
    const IntervalMask m = random_interval(random);
    for (std::int64_t q = 0; q < 30; ++q) {
      for (std::int64_t k = 0; k < 30; ++k) {
        ASSERT_EQ(m.transposed().row(k).contains(q), m.visible(q, k));
      }
    }
  }
}

TEST(Mask, RowEndsNeverDecrease) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    const IntervalMask m = random_interval(random);
    for (std::int64_t q = -20; q < 20; ++q) {
      ASSERT_LE(m.row(q).begin, m.row(q + 1).begin);
      ASSERT_LE(m.row(q).end, m.row(q + 1).end);
    }
  }
}

TEST(Mask, HoldsAtTheEndsOfInt64) {
  const IntervalMask causal{IntervalMask::kUnbounded, 0, 0};
  EXPECT_TRUE(causal.visible(kMax - 1, kMin));
  EXPECT_FALSE(causal.visible(kMin, kMax - 1));
  const IntervalMask window{kMax - 1, kMax - 1, 0};
  EXPECT_TRUE(window.visible(-5, kMax - 10));
  EXPECT_FALSE(window.visible(-5, kMax - 3));
  const IntervalMask chunk{IntervalMask::kUnbounded, 0, 1000};
  EXPECT_TRUE(chunk.visible(kMin, kMin));
  EXPECT_TRUE(chunk.visible(kMax - 1, kMax - 1));
  EXPECT_FALSE(chunk.visible(kMax - 1, kMax - 1001));
}

TEST(Mask, IntersectionIsPointwise) {
  std::mt19937 random(4);
  for (int trial = 0; trial < 300; ++trial) {
    const IntervalMask a = random_interval(random);
    const IntervalMask b = random_interval(random);
    const auto both = intersect(a, b);
    if (!both) {
      EXPECT_NE(a.chunk % b.chunk, 0);
      EXPECT_NE(b.chunk % a.chunk, 0);
      continue;
    }
    for (std::int64_t q = 0; q < 20; ++q) {
      for (std::int64_t k = 0; k < 20; ++k) {
        ASSERT_EQ(both->visible(q, k), a.visible(q, k) && b.visible(q, k));
      }
    }
  }
}

TEST(Mask, IntersectionIsIdempotentAndFullIsItsIdentity) {
  const Mask m = Mask::causal() & Mask::window(3, 5) & Mask::chunk(8);
  EXPECT_EQ((m & m).interval(), m.interval());
  EXPECT_EQ((m & Mask::full()).interval(), m.interval());
  EXPECT_EQ(m.to_string(), "chunk(8) & window(3, 0)");
}

TEST(Mask, ChunkImpliesCausalAndWindowAloneDoesNot) {
  EXPECT_FALSE(Mask::chunk(4)(0, 1, 2));
  EXPECT_TRUE(Mask::chunk(4)(0, 2, 1));
  EXPECT_FALSE(Mask::chunk(4)(0, 4, 3));
  EXPECT_TRUE(Mask::window(1)(0, 1, 2));
  EXPECT_FALSE(Mask::window(1)(0, 1, 3));
}

TEST(Mask, RefusesNegativeWindowsAndChunks) {
  EXPECT_THROW(Mask::window(-1), Error);
  EXPECT_THROW(Mask::window(std::nullopt, -2), Error);
  EXPECT_THROW(Mask::chunk(0), Error);
  try {
    Mask::window(2, -7);
    FAIL() << "a negative side must be refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "sliding_window: expected sides >= 0 or none, got -7");
  }
}

/// Every pair of a compiled mask against the mask itself.
void expect_compiled(const Mask& mask, std::int64_t heads, std::int64_t sq, std::int64_t sk) {
  const CompiledMask c = compile(mask, heads, sq, sk);
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t q = 0; q < sq; ++q) {
      for (std::int64_t k = 0; k < sk; ++k) {
        const bool seen =
            c.interval.visible(q, k) && (c.bitmap == nullptr || c.bitmap->view().visible(h, q, k));
        ASSERT_EQ(seen, mask(h, q, k)) << mask.to_string() << " at " << h << " " << q << " " << k;
        if (c.bitmap != nullptr) {
          ASSERT_EQ((c.bitmap->view().row(h, q, k) & 1) != 0, c.bitmap->view().visible(h, q, k));
        }
      }
    }
  }
}

Mask random_dense(std::mt19937& random, std::int64_t heads, std::int64_t sq, std::int64_t sk) {
  std::vector<std::uint8_t> bits(static_cast<std::size_t>(heads * sq * sk));
  for (auto& b : bits) b = random() % 3 == 0 ? 1 : 0;
  return Mask::dense(bits, heads, sq, sk);
}

TEST(Mask, CompilesToWhatItSays) {
  std::mt19937 random(5);
  const Mask dense = random_dense(random, 3, 130, 70);
  expect_compiled(dense, 3, 130, 70);
  expect_compiled(dense & Mask::causal(), 3, 130, 70);
  expect_compiled(dense | Mask::window(2, 3), 3, 130, 70);
  expect_compiled((Mask::chunk(30) | Mask::window(0, 4)) & Mask::window(50), 1, 130, 150);
  expect_compiled(Mask::chunk(6) & Mask::chunk(4), 1, 70, 70);
  expect_compiled(random_dense(random, 1, 65, 64) & random_dense(random, 2, 65, 64), 2, 65, 64);
}

TEST(Mask, RowReadsAcrossBlocksAndStopsAtTheEnd) {
  std::mt19937 random(6);
  const Mask mask = random_dense(random, 1, 3, 200);
  const auto bitmap = compile(mask, 1, 3, 200).bitmap;
  for (std::int64_t k = 0; k < 200; ++k) {
    const std::uint64_t bits = bitmap->view().row(0, 2, k);
    for (std::int64_t j = 0; j < 64; ++j) {
      const bool expected = k + j < 200 && mask(0, 2, k + j);
      ASSERT_EQ((bits >> j & 1) != 0, expected) << k << " + " << j;
    }
  }
}

TEST(Mask, EqualHeadsAndBlocksAreStoredOnce) {
  const auto stripes = [](std::int64_t head, Range rows, Range keys, std::uint8_t* out) {
    for (std::int64_t q = rows.begin; q < rows.end; ++q) {
      for (std::int64_t k = keys.begin; k < keys.end; ++k) {
        *out++ = (q + k + head / 4) % 2 == 0 ? 1 : 0;
      }
    }
  };
  const auto bitmap = compile(Mask::lazy(8, 640, 640, stripes), 8, 640, 640).bitmap;
  EXPECT_EQ(bitmap->heads(), 8);
  EXPECT_EQ(bitmap->planes(), 2);
  EXPECT_EQ(bitmap->mixed_blocks(), 2);
  EXPECT_LT(bitmap->bytes(), 4096);
}

TEST(Mask, OrOfIntervalsNeedsBitsOnlyOnItsEdges) {
  const auto bitmap = compile(Mask::chunk(256) | Mask::window(0), 1, 1024, 1024).bitmap;
  EXPECT_EQ(bitmap->view().kind(0, {64, 128}, {0, 64}), TileKind::kFull);
  EXPECT_EQ(bitmap->view().kind(0, {0, 64}, {512, 576}), TileKind::kSkip);
  EXPECT_EQ(bitmap->view().kind(0, {0, 64}, {0, 64}), TileKind::kMasked);
  EXPECT_EQ(bitmap->mixed_blocks(), 1);  // every diagonal block is the same triangle
}

TEST(Mask, RefusesAMaskOfAnotherShape) {
  const std::vector<std::uint8_t> bits(12, 1);
  const Mask mask = Mask::dense(bits, 1, 3, 4);
  EXPECT_THROW(compile(mask, 2, 4, 3), Error);
  EXPECT_NO_THROW(compile(mask, 2, 3, 4));
  EXPECT_THROW(Mask::dense(bits, 1, 3, 5), Error);
  EXPECT_THROW(Mask::dense(bits, 1, kMax, kMax), Error);
  EXPECT_THROW(mask & Mask::dense(bits, 1, 4, 3), Error);
}

TEST(Mask, RefusesBitmapsThatNoMachineHolds) {
  try {
    compile(Mask::causal() | Mask::window(1), 1, std::int64_t{1} << 40, std::int64_t{1} << 40);
    FAIL() << "2^68 blocks must be refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
  }
}

TEST(Segments, NegativeIdsSeeNothing) {
  EXPECT_TRUE(same_segment(0, 0));
  EXPECT_FALSE(same_segment(-1, -1));
  EXPECT_FALSE(same_segment(1, 2));
}

}  // namespace
}  // namespace ringattn
