// SPDX-License-Identifier: Apache-2.0
// THE table of cases that every backend, ring, layout and front end must get right.
#pragma once

namespace ringattn::support {

inline constexpr const char* kCases[] = {
    // Every mask, alone and together.
    "b2_sq67_h4x2_d16_bwd",
    "sq96_h2_d32_causal_bwd",
    "sq130_h2_d16_w9,4_bwd",
    "sq130_h2_d16_causal_w17_bwd",
    "sq129_h2_d16_w0,none_bwd",
    "sq129_h2_d16_wnone,20_bwd",
    "sq75_h2_d8_w0_bwd",
    "sq131_h2_d16_chunk29_bwd",
    "sq131_h2_d16_chunk64_w11,0_bwd",
    "sq90_h3_d16_mask_bwd",
    "b2_sq90_sk140_h4x2_d16_maskh_bwd_dlse",
    // Segments and positions.
    "b3_sq110_h2_d16_seg_bwd",
    "b2_sq110_h2_d16_segpad_causal_w30,2_sink_bwd",
    "b2_sq64_h2_d16_segq_causal_bwd",
    "sq100_h2_d16_pos_causal_bwd",
    "b2_sq100_sk70_h2_d16_posfar_w12,5_seg_bwd",
    // Sinks, caps and scales.
    "b2_sq70_h4x2_d16_causal_sink_bwd",
    "b2_sq70_h4_d16_causal_sink3_bwd_dlse",
    "b2_sq70_h4_d16_causal_sinkhx3_bwd",
    "sq70_h6_d16_sink_infsink_bwd",
    "sq70_h2_d16_cap0.5_bwd",
    "sq70_h2_d16_cap30_scale1_peaked_causal_bwd",
    "sq70_h2_d16_scale-0.25_bwd",
    "sq70_h2_d16_scale0_causal_bwd",
    "sq128_h2_d64_peaked_bwd",
    "sq70_h2_d64_hostile_causal",
    "sq70_h2_d64_hostile_cap30_bwd",
    // Shapes: GQA, MQA, odd and unequal dims, unequal lengths, fewer rows than ranks, nothing.
    "sq61_h6x2_d24_causal_bwd",
    "sq61_h5x1_d24_causal_bwd",
    "sq61_h2_d1_causal_bwd",
    "sq61_h2_d33_dv17_causal_bwd",
    "sq40_h1_d128_causal_bwd",
    "sq20_h1_d512_dv3_causal_bwd",
    "sq37_sk150_h2_d16_causal_bwd",
    "sq150_sk37_h2_d16_causal_sink_bwd",
    "sq150_sk37_h2_d16_w5_bwd",
    "sq5_h2_d16_causal_bwd",
    "sq1_sk100_h2_d16_bwd",
    "sq3_sk2_h2_d16_bwd",
    "sq9_sk0_h2_d16_bwd",
    "sq9_sk0_h2_d16_sink_bwd",
    "sq0_sk9_h2_d16_sink_bwd",
    "b0_sq9_h2_d16_bwd",
    // Dtypes and hints.
    "b2_sq120_h4x2_d32_bf16_causal_bwd",
    "b2_sq120_h4x2_d32_f16_causal_bwd",
    "sq200_h2_d64_bf16_causal_w40,0_cap30_sink_bwd",
    "sq200_h2_d64_f16_seg_peaked_bwd",
    "sq128_h2_d32_bf16_peaked_bwd_dlse",
    "sq140_h2_d16_causal_qb16_kvb32_bwd",
    "sq140_h2_d16_causal_fused_det_bwd",
};

}  // namespace ringattn::support
