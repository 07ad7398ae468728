// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set with RINGATTN_ISA=<name>. Includes nothing whose inline
// functions another compilation could share: those would carry this one's instructions along.
#include "cpu/kernels.h"

#include <type_traits>

#include "cpu/exponentials.h"
#include "cpu/packing.h"
#include "cpu/passes.h"
#include "cpu/products.h"
#include "cpu/simd.h"

namespace ringattn::cpu {
namespace {

void scale_rows(float* x, std::int64_t row, std::int64_t rows, std::int64_t n,
                const float* factor) {
  for (std::int64_t i = 0; i < rows; ++i) {
    if (factor[i] == 1.0F) continue;
    for (std::int64_t j = 0; j < n; j += kLanes) {
      store(x + i * row + j, load(x + i * row + j) * factor[i]);
    }
  }
}

void add(float* sum, const float* part, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(sum + i, load(sum + i) + load(part + i));
  for (; i < n; ++i) sum[i] += part[i];
}

void test_exp2(const float* x, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes) store(y + i, exp2(load(x + i)));
}

void test_tanh(const float* x, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes) store(y + i, tanh(load(x + i)));
}

}  // namespace

#define RINGATTN_JOIN2(a, b) a##b
#define RINGATTN_JOIN(a, b) RINGATTN_JOIN2(a, b)
#define RINGATTN_TEXT2(a) #a
#define RINGATTN_TEXT(a) RINGATTN_TEXT2(a)

extern const KernelTable RINGATTN_JOIN(kernels_, RINGATTN_ISA) = {RINGATTN_TEXT(RINGATTN_ISA),
                                                                  product,
                                                                  softmax,
                                                                  softmax_again,
                                                                  finish,
                                                                  gradient,
                                                                  widen,
                                                                  widen_transposed,
                                                                  pair_rows,
                                                                  narrow,
                                                                  dot_rows,
                                                                  scale_rows,
                                                                  add,
                                                                  test_exp2,
                                                                  test_tanh};

}  // namespace ringattn::cpu
