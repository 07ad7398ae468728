// SPDX-License-Identifier: Apache-2.0
// The online softmax without a maximum in its loop. A row's scores are exponentiated against a
// reference that is only its maximum over the first tile; the sums that are needed anyway tell
// whether it has become stale, and then, rarely, it is raised and the tile done again. In exact
// arithmetic the result does not depend on the reference; with a limit on the sums well inside the
// range of the weights' type it does not lose a bit either.
#pragma once

#include "cuda/sm90/wgmma.cuh"
#include "merge.h"

namespace ringattn::cuda::sm90 {

/// Of a thread's rows, lane / 4 and lane / 4 + 8 of its warp. In log2 units.
template <class T, int kColumns>
struct Softmax {
  static constexpr int kScores = kColumns / 2;
  static constexpr int kWeights = kColumns / 4;
  /// Below every score: what is masked becomes 2^(-inf) = 0 against it, without a NaN.
  static constexpr float kUnset = -1e30F;
  /// Of the weights of one tile in one thread. Far above what scores of ordinary spread give, far
  /// below the end of float16.
  static constexpr float kLimit = 0x1p8F;

  float top0, top1;        // the references
  float sum0, sum1;        // of this thread's columns
  float lost0, lost1;      // by rounding the weights, in the tiles that set the reference
  float factor0, factor1;  // for what was gathered before the last raise

  /// The first tile of these rows; references (-inf: none yet) and sums from earlier steps.
  RINGATTN_DEVICE void first(const float (&s)[kScores], std::uint32_t (&p)[kWeights], float scale) {
    top0 = fmaxf(top0, kUnset);
    top1 = fmaxf(top1, kUnset);
    lost0 = lost1 = 0.0F;
    raise(s, scale);
    add(s, p, scale);
  }

  /// Any later tile. True: what was gathered before must be multiplied by the factors.
  RINGATTN_DEVICE bool next(const float (&s)[kScores], std::uint32_t (&p)[kWeights], float scale) {
    float part0;
    float part1;
    exponentials(s, p, scale, part0, part1);
    // Written so that a NaN is stale too.
    const bool stale = !(part0 <= kLimit) | !(part1 <= kLimit);
    const bool raised = __any_sync(0xFFFFFFFFU, stale) != 0;
    if (raised) {
      raise(s, scale);
      add(s, p, scale);
    } else {
      sum0 += part0;
      sum1 += part1;
    }
    return raised;
  }

 private:
  /// A tile that sets the reference. Where one score outweighs all others, its weight should be 1,
  /// but for the rounding of its product with the scale; what packing then does to it must not be
  /// lost, as nothing averages it out.
  RINGATTN_DEVICE void add(const float (&s)[kScores], std::uint32_t (&p)[kWeights], float scale) {
    float part0;
    float part1;
    exponentials(s, p, scale, part0, part1);
    float packed0 = 0.0F;
    float packed1 = 0.0F;
#pragma unroll
    for (int i = 0; i < kWeights; i += 2) {
      const float2 a = ptx::unpack<T>(p[i]);
      const float2 b = ptx::unpack<T>(p[i + 1]);
      packed0 += a.x + a.y;
      packed1 += b.x + b.y;
    }
    sum0 += part0;
    sum1 += part1;
    lost0 += packed0 - part0;
    lost1 += packed1 - part1;
  }

  RINGATTN_DEVICE void raise(const float (&s)[kScores], float scale) {
    float a0 = s[0];
    float a1 = s[1];
    float b0 = s[2];
    float b1 = s[3];
#pragma unroll
    for (int i = 4; i < kScores; i += 4) {
      a0 = fmaxf(a0, s[i]);
      a1 = fmaxf(a1, s[i + 1]);
      b0 = fmaxf(b0, s[i + 2]);
      b1 = fmaxf(b1, s[i + 3]);
    }
    const float new0 = fmaxf(top0, quad_max(fmaxf(a0, a1)) * scale);
    const float new1 = fmaxf(top1, quad_max(fmaxf(b0, b1)) * scale);
    factor0 = ptx::power_of_two(top0 - new0);
    factor1 = ptx::power_of_two(top1 - new1);
    top0 = new0;
    top1 = new1;
    sum0 *= factor0;
    sum1 *= factor1;
    lost0 *= factor0;
    lost1 *= factor1;
  }

  RINGATTN_DEVICE static float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 2));
  }

  /// Scores to packed weights; the scores stay.
  RINGATTN_DEVICE void exponentials(const float (&s)[kScores], std::uint32_t (&p)[kWeights],
                                    float scale, float& part0, float& part1) const {
    float a0 = 0.0F;
    float a1 = 0.0F;
    float b0 = 0.0F;
    float b1 = 0.0F;
#pragma unroll
    for (int i = 0; i < kScores; i += 4) {
      const float e0 = ptx::power_of_two(fmaf(s[i], scale, -top0));
      const float e1 = ptx::power_of_two(fmaf(s[i + 1], scale, -top0));
      const float e2 = ptx::power_of_two(fmaf(s[i + 2], scale, -top1));
      const float e3 = ptx::power_of_two(fmaf(s[i + 3], scale, -top1));
      a0 += e0;
      a1 += e1;
      b0 += e2;
      b1 += e3;
      p[i / 2] = ptx::pack<T>(e0, e1);
      p[i / 2 + 1] = ptx::pack<T>(e2, e3);
    }
    part0 = a0 + a1;
    part1 = b0 + b1;
  }
};

/// tanh(scale * dot): a score in units of its cap. float16 weights show the error of the fast tanh,
/// bfloat16 ones do not.
template <class T>
RINGATTN_DEVICE float unit_cap(float dot, float scale) {
  if constexpr (std::is_same_v<T, __half>) {
    // tanh x = 1 - 2 / (1 + exp 2x); the error is a few eps.
    constexpr float kTwoLog2e = 2.885390081777927F;
    const float e = ptx::power_of_two(dot * (scale * kTwoLog2e));
    return fmaf(-2.0F, ptx::reciprocal(1.0F + e), 1.0F);
  } else {
    return ptx::fast_tanh(dot * scale);
  }
}
/// cap * tanh(scale * dot / cap) in log2 units: `scale` is that of the argument, `cap` that of the
/// result.
template <class T, int kScores>
RINGATTN_DEVICE void soft_cap(float (&s)[kScores], float scale, float cap) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) s[i] = cap * unit_cap<T>(s[i], scale);
}

/// `hidden` where the bit of a pair is 0. `low` and `high`: the words of the thread's two rows.
template <int kScores>
RINGATTN_DEVICE void hide(float (&s)[kScores], uint4 low, uint4 high, float hidden) {
  const int shift = 2 * (threadIdx.x % 4);
  const std::uint32_t a[4] = {low.x >> shift, low.y >> shift, low.z >> shift, low.w >> shift};
  const std::uint32_t b[4] = {high.x >> shift, high.y >> shift, high.z >> shift, high.w >> shift};
#pragma unroll
  for (int i = 0; i < kScores; i += 4) {
    const int word = i / 16;
    const int bit = i / 4 % 4 * 8;
    if ((a[word] & 1U << bit) == 0) s[i] = hidden;
    if ((a[word] & 2U << bit) == 0) s[i + 1] = hidden;
    if ((b[word] & 1U << bit) == 0) s[i + 2] = hidden;
    if ((b[word] & 2U << bit) == 0) s[i + 3] = hidden;
  }
}

/// The words of 64 columns.
RINGATTN_DEVICE uint2 part_of(uint4 words, int part) {
  return part == 0 ? make_uint2(words.x, words.y) : make_uint2(words.z, words.w);
}
/// The same for 64 columns of numbers packed in pairs, to 0: four words of every kFour.
template <int kFour = 4, class Word>
RINGATTN_DEVICE void hide_packed(Word* x, uint2 low, uint2 high) {
  static_assert(sizeof(Word) == 4);
  const int shift = 2 * (threadIdx.x % 4);
  const std::uint32_t a[2] = {low.x >> shift, low.y >> shift};
  const std::uint32_t b[2] = {high.x >> shift, high.y >> shift};
  const auto keep = [](Word& x, std::uint32_t bits) {
    const std::uint32_t mask =
        ((bits & 1U) != 0 ? 0xFFFFU : 0U) | ((bits & 2U) != 0 ? 0xFFFF0000U : 0U);
    if constexpr (std::is_same_v<Word, float>) {
      x = __uint_as_float(__float_as_uint(x) & mask);
    } else {
      x &= mask;
    }
  };
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    Word* const two = x + n / 2 * kFour + n % 2 * 2;
    keep(two[0], a[n / 4] >> n % 4 * 8);
    keep(two[1], b[n / 4] >> n % 4 * 8);
  }
}

}  // namespace ringattn::cuda::sm90
