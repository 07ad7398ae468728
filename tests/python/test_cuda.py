# SPDX-License-Identifier: Apache-2.0
"""On a GPU, without a ring: values and gradients of the core's table and of longer cases against
float64, by the error model of every test; transformations give the bits of what they transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_conformance
from conftest import Oracle, table
from jax.sharding import PartitionSpec as P

import ringattn
from ringattn.jax import ring_attention


def gpu():
    """The first GPU, or why there is none for these tests."""
    if "cuda" not in ringattn.platforms():
        return "this build of ringattn has no kernels for GPUs"
    try:
        return jax.devices("cuda")[0]
    except RuntimeError as error:
        return f"JAX has no GPU here: {str(error).splitlines()[0]}"


GPU = gpu()
if isinstance(GPU, str):
    pytest.skip(GPU, allow_module_level=True)

# Where the kernels for tensor cores, and those for Hopper, cut rows in tiles.
LONG = [
    "b2_sq700_h4x2_d64_bf16_causal_bwd",
    "b2_sq700_h4x2_d128_f16_causal_bwd",
    "sq600_h8x2_d128_bf16_bwd",
    "sq600_h2_d256_bf16_causal_bwd",
    "sq520_h2_d128_bf16_causal_sink_bwd_dlse",
    "sq900_h2_d128_bf16_causal_w200,0_sink_bwd",
    "sq900_h2_d64_f16_chunk200_bwd",
    "b2_sq700_h4x2_d64_bf16_segpad_causal_w300,2_sink_bwd",
    "b3_sq600_h2_d128_f16_seg_bwd",
    "b2_sq500_sk700_h4x2_d128_bf16_maskh_bwd_dlse",
    "sq500_h2_d64_bf16_mask_bwd",
    "sq600_h2_d128_bf16_cap20_causal_bwd",
    "sq450_h2_d40_dv88_bf16_causal_bwd",
    "sq450_h2_d96_bf16_causal_cap30_sink_bwd",
    "b2_sq500_h4_d128_bf16_causal_sinkhx3_bwd",
    "sq700_h2_d128_bf16_pos_causal_bwd",
    "b2_sq500_h4x1_d128_bf16_causal_bwd",
    "b2_sq500_h4x2_d64_causal_w100,20_sink_bwd",
    "sq400_h2_d128_cap20_bwd",
    "sq300_h2_d256_seg_causal_bwd",
]


def on(device, o):
    """The results of a case, computed by a device."""
    with jax.default_device(device), pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_conformance, "jit", jax.jit)
        return test_conformance.run(o, 1, "contiguous")


@pytest.mark.parametrize("text", table() + LONG)
def test_matches_float64(text):
    jax.config.update("jax_enable_x64", "posfar" in text)
    try:
        o = Oracle(text, 1)
        if o.inputs["q_positions"] is not None and "posfar" not in text:
            for n in ("q_positions", "kv_positions"):
                o.inputs[n] = o.inputs[n].astype(np.int32)
        if "d512" in text:  # refused when it is compiled
            with pytest.raises(jax.errors.JaxRuntimeError, match="head_dim 512 is above 256"):
                on(GPU, o)
            return
        verdict = o.judge(on(GPU, o), gpu=True)
        assert not verdict, f"{text}\n{verdict}"
    finally:
        jax.config.update("jax_enable_x64", False)


def test_a_cpu_device_beside_the_gpu_has_its_own_kernels():
    o = Oracle("b2_sq120_h4x2_d32_bf16_causal_bwd", 1)
    here, there = on(jax.devices("cpu")[0], o), on(GPU, o)
    assert not o.judge(here)
    assert not o.judge(there)
    assert any(not np.array_equal(here[n], there[n]) for n in here)  # the GPU's are other bits


def data(*lead, dtype=jnp.bfloat16, dim=128):
    shape = (*lead, 2, 384, 4, dim)
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.device_put(jax.random.normal(k, shape, dtype), GPU) for k in keys]


def attention(q, k, v, **more):
    return ring_attention(q, k, v, causal=True, deterministic=True, **more)


def gradients(f):
    """out, dq, dk and dv of f(q, k, v), under jit."""

    def run(q, k, v, dout):
        out, pull = jax.vjp(f, q, k, v)
        return out, *pull(dout)

    return jax.jit(run)


def assert_same_bits(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_results_stay_on_the_gpu_and_are_the_same_each_time():
    f, x = gradients(attention), data()
    first = f(*x)
    assert all(y.devices() == {GPU} for y in first)
    for _ in range(5):
        assert_same_bits(f(*x), first)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_vmap_is_one_call_after_another(dtype):
    x = data(3, dtype=dtype, dim=64)
    together = jax.jit(jax.vmap(gradients(attention)))(*x)
    one = gradients(attention)
    for i in range(3):
        assert_same_bits([y[i] for y in together], one(*(y[i] for y in x)))


def test_a_ring_of_one_is_no_ring():
    mesh = jax.sharding.Mesh(np.array([GPU]), ("sp",))
    f = jax.shard_map(
        lambda *y: attention(*y, axis_name="sp"), mesh=mesh, in_specs=P(None, "sp"), out_specs=P(None, "sp")
    )
    x = data()
    assert_same_bits(gradients(f)(*x), gradients(attention)(*x))


def test_scan_and_checkpoint():
    q, k, v, dout = data(dim=64)

    def layers(attend, unrolled):
        def f(q):
            if unrolled:
                return attend(attend(q))
            return jax.lax.scan(lambda c, _: (attend(c), None), q, length=2)[0]

        return jax.jit(lambda q: jax.vjp(f, q)[1](dout))(q)

    attend = lambda q: attention(q, k, v)
    assert_same_bits(layers(jax.checkpoint(attend), False), layers(attend, True))
