// SPDX-License-Identifier: Apache-2.0
// The smallest program that uses every kind of symbol of the library: a call, a class, a thrown
// error, the version. It tests the build, not the mathematics.
#include <cmath>
#include <cstdio>
#include <vector>

#include "ringattn/attention.h"
#include "ringattn/version.h"

int main() {
  using namespace ringattn;
  // Two keys of equal score: the output is the mean of their values.
  std::vector<float> query{1, 0}, key{0, 1, 0, 1}, value{2, 4, 6, 8}, out(2);
  attention({.query = {query.data(), DType::kFloat32, {1, 1, 1, 2}},
             .key = {key.data(), DType::kFloat32, {1, 2, 1, 2}},
             .value = {value.data(), DType::kFloat32, {1, 2, 1, 2}},
             .out = {out.data(), DType::kFloat32, {1, 1, 1, 2}}});
  bool refused = false;
  try {
    static_cast<void>(Mask::chunk(0));
  } catch (const Error& error) {
    refused = error.code() == ErrorCode::kInvalidArgument;
  }
  const bool right = std::abs(out[0] - 4) < 1e-6F && std::abs(out[1] - 6) < 1e-6F && refused;
  std::printf("ringattn %s: %s\n", RINGATTN_VERSION, right ? "works" : "is wrong");
  return right ? 0 : 1;
}
