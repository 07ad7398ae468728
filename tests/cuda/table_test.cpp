// SPDX-License-Identifier: Apache-2.0
// The conformance table on a GPU: every case, layout and ring size against float64, guarded and
// strided tensors, the same bits in a second run. Rings are ranks with a stream each on one GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <tuple>

#include "backend.h"
#include "conformance/test_name.h"
#include "cuda/availability.h"
#include "support/conformance.h"
#include "support/conformance_table.h"
#include "support/data.h"

namespace ringattn::support {
namespace {

// What only matters where rows are cut in pieces of 16 to 192, where heads are padded, or where
// 16-bit types have kernels of their own: every mask, alone and together, over several tiles.
constexpr const char* kMore[] = {
    "b2_sq300_h4x2_d64_bf16_causal_bwd",
    "sq520_h2_d128_bf16_causal_sink_bwd",
    "sq300_sk431_h2_d128_f16_w100,30_bwd",
    "sq260_h2_d256_bf16_causal_bwd",
    "sq200_h2_d256_causal_bwd",
    "sq200_h2_d192_dv128_bf16_causal_bwd",
    "sq330_h4x1_d96_f16_chunk100_cap20_bwd_dlse",
    "b2_sq300_h2_d64_bf16_seg_causal_bwd",
    "sq300_h2_d72_bf16_maskh_bwd",
    "sq257_h2_d64_f16_pos_causal_w90,0_bwd",
    "sq700_h2_d128_bwd",
    "b2_sq700_h4x2_d64_bf16_bwd",
    "b2_sq700_h4x2_d128_f16_causal_bwd",
    "sq600_h2_d256_bf16_bwd",
    "sq900_h2_d64_bf16_causal_w200,0_bwd",
    "sq900_h2_d128_bf16_w130,70_sink_bwd",
    "sq900_h2_d128_bf16_wnone,20_bwd",
    "sq900_h2_d64_f16_chunk200_bwd",
    "sq900_h2_d128_bf16_chunk256_w300,0_bwd",
    "b2_sq700_h2_d64_bf16_segpad_causal_w300,2_sink_bwd",
    "b2_sq500_h2_d256_f16_seg_causal_bwd",
    "b3_sq600_h2_d128_bf16_seg_bwd",
    // Documents of many tiles with padding behind: masks are found long before their copies come.
    "sq2500_d64_f16_seg_bwd",
    "sq2500_d128_bf16_seg_bwd",
    "sq2500_d256_bf16_seg_bwd",
    // More tiles than a warp asks about at once: which of them share a segment is listed first.
    "sq4200_d64_bf16_seg",
    "sq4200_d128_f16_seg_causal",
    "b2_sq500_sk700_h4x2_d128_bf16_maskh_bwd_dlse",
    "sq500_h2_d64_bf16_mask_bwd",
    "sq700_h2_d128_bf16_pos_causal_bwd",
    "b2_sq500_sk370_h2_d64_f16_posfar_w120,50_seg_bwd",
    "b2_sq500_h4_d128_bf16_causal_sinkhx3_bwd",
    "sq600_h2_d128_bf16_cap20_causal_bwd",
    "sq600_h2_d64_f16_cap5_bwd",
    "sq500_h2_d256_bf16_cap30_scale1_peaked_causal_bwd",
    "sq600_h2_d128_bf16_peaked_bwd",
    "sq600_h2_d64_f16_peaked_causal_bwd",
    "sq600_h2_d128_bf16_hostile_causal",
    "sq600_h2_d64_bf16_hostile",
    "sq500_h2_d64_bf16_scale-0.25_causal_bwd",
    "sq500_h2_d64_bf16_scale0_causal_bwd",
    "sq450_h2_d40_dv88_bf16_causal_bwd",
    "sq450_h2_d100_bf16_causal_bwd",
    "sq700_sk90_h2_d128_bf16_causal_sink_bwd",
    "sq90_sk700_h2_d64_bf16_causal_bwd",
    "sq5_h2_d64_bf16_causal_bwd",
    "sq1024_h2_d128_bf16_causal_bwd",
    "sq1024_h2_d64_f16_causal_w700,0_bwd",
    "sq1_sk1000_h2_d128_f16_bwd",
    "sq300_sk0_h2_d64_bf16_sink_bwd",
};

/// Every row whose segment id is negative, all bits set: a NaN in any float format.
void poison(HostTensor& tensor, const HostTensor& ids) {
  if (tensor.shape().empty() || ids.elements() == 0) return;
  const std::size_t row_bytes = tensor.size_bytes() / static_cast<std::size_t>(ids.elements());
  for (std::int64_t row = 0; row < ids.elements(); ++row) {
    if (ids.as<std::int32_t>()[row] >= 0) continue;
    std::memset(tensor.data() + static_cast<std::size_t>(row) * row_bytes, 0xFF, row_bytes);
  }
}

class CudaTable : public OnAGpu<testing::TestWithParam<std::tuple<const char*, Layout>>> {};

TEST_P(CudaTable, MatchesFloat64OnEveryRing) {
  const auto& [text, layout] = GetParam();
  Case c = parse_case(text);
  c.layout = layout;
  const CaseData data = make_data(c);
  const Options options = make_options(c, data);
  const Expected expected = make_expected(make_problem(c), options, data.inputs(), c.backward);
  Problem problem = make_problem(c);
  problem.device = Device::kCuda;
  CheckSettings settings;
  settings.backend = "cuda";
  if (std::max(problem.head_dim, problem.value_dim) > 256) {
    EXPECT_THROW(check_against(expected, problem, options, data.inputs(), 1, c.backward, settings),
                 Error);
    return;
  }
  // Rows at every alignment are for the portable kernels, those at multiples of 16 bytes for the
  // ones that the device has of its own.
  const auto check = [&](const char* what, const Options& how, const CaseData& given, int ring) {
    c.ring = ring;
    for (Guard guard : {Guard::kOdd, Guard::kAligned}) {
      if (guard == Guard::kAligned && c.dtype == DType::kFloat32) continue;
      settings.guard = guard;
      const CheckReport report =
          check_against(expected, problem, how, given.inputs(), ring, c.backward, settings);
      EXPECT_TRUE(report.ok()) << what << (guard == Guard::kOdd ? " odd " : " aligned ")
                               << to_string(c) << "\n"
                               << report.message();
      EXPECT_EQ(report.result.backend, "cuda");
    }
  };
  for (int ring : {1, 2, 3, 4, 8}) {
    settings.against_one = ring == 8;
    check("", options, data, ring);
  }
  settings.against_one = false;
  if (c.segments != SegmentForm::kNone) {
    const HostTensor& some =  // one side's ids serve both
        data.q_segment_ids.shape().empty() ? data.kv_segment_ids : data.q_segment_ids;
    const HostTensor& others = data.kv_segment_ids.shape().empty() ? some : data.kv_segment_ids;
    CaseData queries = data;
    for (HostTensor* t : {&queries.query, &queries.dout}) poison(*t, some);
    for (int ring : {1, 4}) check("NaN in padding of queries", options, queries, ring);
    CaseData keys = data;
    for (HostTensor* t : {&keys.key, &keys.value}) poison(*t, others);
    for (int ring : {1, 4}) check("NaN in padding of keys", options, keys, ring);
  }
  // The bits of dquery too, from kernels that add in order.
  if (!c.backward) return;
  Options in_order = options;
  in_order.deterministic = true;
  for (int ring : {1, 2, 4}) check("deterministic", in_order, data, ring);
}

std::string parameter_name(const testing::TestParamInfo<std::tuple<const char*, Layout>>& info) {
  return std::string(ringattn::name(std::get<1>(info.param))) + "_" +
         test_name(std::get<0>(info.param));
}

constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kZigzag, Layout::kStriped};
INSTANTIATE_TEST_SUITE_P(Shared, CudaTable,
                         testing::Combine(testing::ValuesIn(kCases), testing::ValuesIn(kLayouts)),
                         parameter_name);
INSTANTIATE_TEST_SUITE_P(Gpu, CudaTable,
                         testing::Combine(testing::ValuesIn(kMore), testing::ValuesIn(kLayouts)),
                         parameter_name);

}  // namespace
}  // namespace ringattn::support
