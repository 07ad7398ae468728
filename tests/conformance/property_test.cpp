// SPDX-License-Identifier: Apache-2.0
// What must hold between two runs, whatever the numbers are: heads and batch rows are
// independent, documents in one sequence are documents apart, ids are names, hints change nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "conformance_testing.h"

namespace ringattn::support {
namespace {

class Property : public testing::TestWithParam<std::tuple<const char*, int>> {
 protected:
  RingResult run(const Bench& bench) const {
    return bench.run(std::get<0>(GetParam()), std::get<1>(GetParam()));
  }
};

/// t[:, :, order] of [B, S, heads, D].
HostTensor permute_heads(const HostTensor& t, const std::vector<std::int64_t>& order) {
  HostTensor result = t;
  const auto& s = t.shape();
  for (std::int64_t b = 0; b < s[0]; ++b) {
    for (std::int64_t i = 0; i < s[1]; ++i) {
      for (std::int64_t h = 0; h < s[2]; ++h) {
        std::copy_n(t.as<float>() + index_of(t, b, i, order[static_cast<std::size_t>(h)]), s[3],
                    result.as<float>() + index_of(result, b, i, h));
      }
    }
  }
  return result;
}

bool same_bits(const HostTensor& a, const HostTensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

TEST_P(Property, PermutingHeadsPermutesResults) {
  const Bench bench("b2_sq50_h4_d16_causal_w20_bwd");
  const std::vector<std::int64_t> order = {2, 0, 3, 1};
  Bench permuted = bench;
  for (HostTensor CaseData::*t :
       {&CaseData::query, &CaseData::key, &CaseData::value, &CaseData::dout}) {
    permuted.data.*t = permute_heads(bench.data.*t, order);
  }
  const RingResult a = run(bench);
  const RingResult b = run(permuted);
  EXPECT_TRUE(same_bits(permute_heads(a.out, order), b.out));
  EXPECT_TRUE(same_bits(permute_heads(a.dquery, order), b.dquery));
  EXPECT_TRUE(same_bits(permute_heads(a.dkey, order), b.dkey));
  EXPECT_TRUE(same_bits(permute_heads(a.dvalue, order), b.dvalue));
}

TEST_P(Property, SegmentIdsAreOnlyNames) {
  Bench bench("b2_sq60_h2_d16_seg_causal_bwd");
  const RingResult a = run(bench);
  for (HostTensor* ids : {&bench.data.q_segment_ids, &bench.data.kv_segment_ids}) {
    for (std::int64_t i = 0; i < ids->elements(); ++i) {
      std::int32_t& id = ids->as<std::int32_t>()[i];
      id = id < 0 ? -7 : id + 1000;
    }
  }
  EXPECT_EQ(different_bits(a, run(bench)), "");
}

/// Rows [begin, end) of [1, S, heads, D].
HostTensor rows(const HostTensor& t, std::int64_t begin, std::int64_t end) {
  HostTensor part(t.dtype(), {1, end - begin, t.shape()[2], t.shape()[3]});
  std::copy_n(t.as<float>() + index_of(t, 0, begin), part.elements(), part.as<float>());
  return part;
}

TEST_P(Property, PackedDocumentsEqualDocumentsApart) {
  Bench packed("sq60_h4x2_d16_seg_causal_bwd");
  constexpr std::int64_t kBorders[] = {0, 7, 30, 47, 60};
  for (std::int64_t i = 0, doc = 0; i < 60; ++i) {
    if (i == kBorders[doc + 1]) ++doc;
    packed.data.q_segment_ids.as<std::int32_t>()[i] = static_cast<std::int32_t>(doc);
    packed.data.kv_segment_ids.as<std::int32_t>()[i] = static_cast<std::int32_t>(doc);
  }
  const RingResult whole = run(packed);
  for (int doc = 0; doc < 4; ++doc) {
    const std::int64_t begin = kBorders[doc], end = kBorders[doc + 1];
    Bench apart("sq" + std::to_string(end - begin) + "_h4x2_d16_causal_bwd");
    for (HostTensor CaseData::*t :
         {&CaseData::query, &CaseData::key, &CaseData::value, &CaseData::dout}) {
      apart.data.*t = rows(packed.data.*t, begin, end);
    }
    const Expected expected = apart.expected();
    for (const NamedResult& r : kResults) {
      if ((whole.*r.member).shape().size() != 4) continue;
      const Comparison c = compare(r.name, rows(whole.*r.member, begin, end),
                                   expected.truth.*r.member, expected.naive.*r.naive,
                                   error_model(r.name, apart.problem, expected.naive.magnitudes));
      EXPECT_TRUE(c.ok) << "document " << doc << ": " << c.message;
    }
  }
}

TEST_P(Property, PositionsInOrderAreNoPositions) {
  const Bench plain("sq50_sk40_h2_d16_causal_w11_bwd");
  Bench explicitly("sq50_sk40_h2_d16_causal_w11_pos_bwd");
  for (HostTensor* p : {&explicitly.data.q_positions, &explicitly.data.kv_positions}) {
    for (std::int64_t i = 0; i < p->elements(); ++i) p->as<std::int64_t>()[i] = i;
  }
  const Expected expected = plain.expected();
  const RingResult r = run(explicitly);
  for (const NamedResult& named : kResults) {
    if ((r.*named.member).shape().empty()) continue;
    const Comparison c = compare(named.name, r.*named.member, expected.truth.*named.member,
                                 expected.naive.*named.naive,
                                 error_model(named.name, plain.problem, expected.naive.magnitudes));
    EXPECT_TRUE(c.ok) << c.message;
  }
}

INSTANTIATE_TEST_SUITE_P(Conformance, Property,
                         testing::Combine(testing::Values("reference", "cpu"),
                                          testing::Values(1, 3, 8)),
                         backend_and_ring);

}  // namespace
}  // namespace ringattn::support
