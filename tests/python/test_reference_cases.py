# SPDX-License-Identifier: Apache-2.0
"""The test cases of the function that this one replaces, and of tokamax's ring: the same calls,
each against float64 where theirs ask for a finite result or for 1e-2.

Names: E, ejkernel's TPU ring; X, its XLA ring; V, its first comparison of the two; S, its block
sparse attention (the arguments are the same); T, tokamax's ring. Those that ask for what the
contract refuses or decides otherwise say so.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import Dense, sinks_of_heads, visible
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as sm
from jax.sharding import PartitionSpec as P

from ringattn.jax import ring_attention

BLOCKS = lambda q, kv: SimpleNamespace(q_blocksize=q, kv_blocksize=kv)
MINUS2 = lambda n: np.full(n, -2.0, np.float32)
E, B = (2, 256, 8, 64), (2, 256, 4, 32)  # [batch, seq, heads, head_dim]
N = (2, 256, 8, 128)
X1, X2, X3 = (2, 128, 4, 64), (2, 256, 4, 64), (2, 64, 4, 32)
V = (2, 512, 8, 64)
S8, S4 = (2, 1024, 8, 64), (2, 512, 4, 64)

FORWARD = {
    "E1 basic_forward": (E, {}),
    "E2 softmax_aux_1d": (E, {"softmax_aux": MINUS2(4)}),
    # theirs refuses; the contract: several sinks of each head
    "E3 softmax_aux_2d": (E, {"softmax_aux": MINUS2((8, 4))}),
    "E4 logits_soft_cap": (E, {"logits_soft_cap": 30.0}),
    "E5 sliding_window_symmetric": (E, {"sliding_window": 64}),
    "E6 sliding_window_asymmetric": (E, {"sliding_window": (32, 96)}),
    "E7 sliding_window_small": (E, {"sliding_window": 0}),
    "E8 sliding_window_large": (E, {"sliding_window": 512}),
    "E9 sliding_window_with_softmax_aux": (E, {"sliding_window": 64, "softmax_aux": MINUS2(4)}),
    "E10 sliding_window_with_causal": (E, {"sliding_window": 64, "causal": True}),
    "E11 causal_mask": (E, {"causal": True}),
    "E12 combined_features": (
        E, {"softmax_aux": MINUS2(4), "logits_soft_cap": 30.0, "sliding_window": (32, 96), "causal": True}
    ),
    "E18 numeric basic": (N, {}),
    "E19 numeric causal": (N, {"causal": True}),
    "E20 numeric window": (N, {"sliding_window": 64}),
    "E21 numeric aux_1d": (N, {"softmax_aux": MINUS2(4)}),
    "E22 numeric soft_cap": (N, {"logits_soft_cap": 30.0}),
    "E23 numeric combined": (
        N, {"softmax_aux": MINUS2(4), "logits_soft_cap": 30.0, "sliding_window": 64}
    ),
    "E25 small_sequence": ((1, 256, 4, 32), {}),
    "E26 different_chunk_sizes": ((2, 512, 8, 64), {"fwd_params": BLOCKS(128, 256)}),
    "E27 large_head_dim": ((2, 256, 4, 128), {}),
    "X1 basic": (X1, {}),
    "X2 causal": (X1, {"causal": True}),
    "X3 blocks 32": (X1, {"fwd_params": BLOCKS(32, 32)}),
    "X3 blocks 64": (X1, {"fwd_params": BLOCKS(64, 64)}),
    "X3 blocks 128": (X1, {"fwd_params": BLOCKS(128, 128)}),
    "X4 window 64": (E, {"sliding_window": 64}),
    "X5 window (32, 96)": (X2, {"sliding_window": (32, 96)}),
    "X6 window 32": (X2, {"sliding_window": 32}),
    "X6 window 128": (X2, {"sliding_window": 128}),
    "X7 cap 30": (X1, {"logits_soft_cap": 30.0}),
    "X9 window 64, 4 sinks": (X2, {"sliding_window": 64, "softmax_aux": MINUS2(4)}),
    "X10 window 64, 2 sinks": (X2, {"sliding_window": 64, "softmax_aux": MINUS2(2)}),
    "X10 window 64, 8 sinks": (X2, {"sliding_window": 64, "softmax_aux": MINUS2(8)}),
    "X11 window 64, cap 30": (X2, {"sliding_window": 64, "logits_soft_cap": 30.0}),
    "X11 window (32, 96), 8 sinks": (X2, {"sliding_window": (32, 96), "softmax_aux": MINUS2(8)}),
    "X11 causal, window, sinks, cap": (
        X2, {"causal": True, "sliding_window": (32, 96), "softmax_aux": MINUS2(4), "logits_soft_cap": 30.0}
    ),
    "X12 causal": (X3, {"causal": True}),
    "X13 padding": (X3, {"padding": (48, 32)}),
    "X14 causal, padding": (X3, {"causal": True, "padding": (48, 32)}),
    "X15 window 16": (X3, {"sliding_window": 16}),
    "X15 window (8, 24)": (X3, {"sliding_window": (8, 24)}),
    "X17 softmax_scale": (X3, {"softmax_scale": 0.5}),
    "X19 without its bias": (
        X3, {"padding": (48, 32), "sliding_window": (8, 16), "softmax_scale": 0.5}
    ),
    "V1 basic": (V, {}),
    "V2 aux 1-D": (V, {"softmax_aux": MINUS2(4)}),
    "V3 aux 2-D": (V, {"softmax_aux": MINUS2((8, 4))}),
    "V4 cap 30": (V, {"logits_soft_cap": 30.0}),
    "V5 window 128": (V, {"sliding_window": 128}),
    "V6 window (64, 192)": (V, {"sliding_window": (64, 192)}),
    "V7 window 1": (V, {"sliding_window": 1}),
    "V8 window 128, aux": (V, {"sliding_window": 128, "softmax_aux": MINUS2(4)}),
    "V9 combined": (
        V, {"sliding_window": 128, "softmax_aux": MINUS2(4), "logits_soft_cap": 30.0}
    ),
}  # fmt: skip

BACKWARD = {
    "E13 softmax_aux": (B, {"softmax_aux": MINUS2(2)}),
    "E14 soft_cap": (B, {"logits_soft_cap": 30.0}),
    "E15 window 64": (B, {"sliding_window": 64}),
    "E16 window (32, 96)": (B, {"sliding_window": (32, 96)}),
    "E17 combined": (
        B, {"softmax_aux": MINUS2(2), "logits_soft_cap": 30.0, "sliding_window": 64}
    ),
    "X20 plain": ((2, 64, 4, 64), {}),
    "X20 window 32, cap 30, 2 sinks": (
        (2, 64, 4, 64), {"sliding_window": 32, "logits_soft_cap": 30.0, "softmax_aux": MINUS2(2)}
    ),
    "V10 basic": (E, {}),
    "V11 aux 1-D": (E, {"softmax_aux": MINUS2(4)}),
    "V12 aux 2-D": (E, {"softmax_aux": MINUS2((8, 4))}),
}  # fmt: skip

SPARSE = {
    "S1 causal": (S8, {"causal": True}),
    "S2 window 256": (S8, {"sliding_window": 256}),
    "S3 window (128, 64)": (S8, {"sliding_window": (128, 64)}),
    "S4 causal, window 256": (S8, {"causal": True, "sliding_window": 256}),
    "S5 chunk 128": (S8, {"chunk_size": 128}),
    "S6 halves, causal, window 256": (
        S8, {"halves": True, "causal": True, "sliding_window": 256}
    ),
    "S7 blocks of 128": (
        S8, {"causal": True, "sliding_window": 512, "fwd_params": BLOCKS(128, 128)}
    ),
    "S7 blocks of 512": (
        S8, {"causal": True, "sliding_window": 512, "fwd_params": BLOCKS(512, 512)}
    ),
    "S8 full": (S4, {}),
    "S9 chunk": (S4, {"chunk_size": 64}),
    "S10 mask_builder": (S4, {"builder": True}),
    "S11 cap 50": (S4, {"logits_soft_cap": 50.0}),
    "S12 scale .5": (S4, {"softmax_scale": 0.5}),
    "S13 aux": (S4, {"softmax_aux": MINUS2(4)}),
    "S14 cap 30, scale .2, window 256": (
        S4, {"logits_soft_cap": 30.0, "softmax_scale": 0.2, "sliding_window": 256}
    ),
}  # fmt: skip


def normal(shape, dtype=jnp.float32, n=3, factor=1.0):
    rng = np.random.default_rng(0)
    return [jnp.asarray(factor * rng.normal(size=shape), dtype) for _ in range(n)]


def builder(q_len, kv_len, heads, head, _reps):
    shape = (q_len, kv_len)
    return sm.CausalMask(shape) if head < heads // 2 else sm.LocalMask(shape, (128, 128), 0)


def prepare(shape, options):
    """Arguments of ours, and those of the dense mask."""
    batch, seq, heads, _ = shape
    options = dict(options)
    who = ("causal", "sliding_window", "chunk_size")
    mask_options = {name: options[name] for name in who if name in options}
    lengths, ids = options.pop("padding", None), None
    if lengths is not None:  # 0 where there is something, -1 behind it
        ids = np.where(np.arange(seq) < np.array(lengths)[:, None], 0, -1).astype(np.int32)
    if options.pop("halves", False):
        ids = np.broadcast_to(np.arange(seq) // (seq // 2), (batch, seq)).astype(np.int32)
    if ids is not None:
        options |= {"q_segment_ids": jnp.asarray(ids), "kv_segment_ids": jnp.asarray(ids)}
    mask = visible(seq, **mask_options, ids=ids)
    if options.pop("builder", False):
        options["mask_builder"] = builder
        mask = np.stack([builder(seq, seq, heads, h, 1)[:, :] for h in range(heads)])[None]
    if "softmax_aux" in options:
        options["softmax_aux"] = jnp.asarray(options["softmax_aux"])
    arguments = {
        "scale": options.get("softmax_scale"),
        "cap": options.get("logits_soft_cap"),
        "sinks": options.get("softmax_aux"),
    }
    return options, mask, arguments


@pytest.mark.parametrize("name", FORWARD)
def test_forward(name):
    shape, options = FORWARD[name]
    options, mask, arguments = prepare(shape, options)
    x = normal(shape)
    out = ring_attention(*x, **options)
    assert out.shape == shape and out.dtype == jnp.float32
    np.testing.assert_allclose(out, Dense(*x, mask, **arguments).out, rtol=1e-4, atol=5e-6)


def test_x8_large_logits_with_a_cap_are_finite():
    q, k, v = normal(X1)
    out = ring_attention(10 * q, k, v, logits_soft_cap=30.0)
    truth = Dense(10 * q, k, v, visible(128), cap=30.0).out
    np.testing.assert_allclose(out, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKWARD)
def test_gradients_of_the_mean_square(name):
    shape, options = BACKWARD[name]
    options, mask, arguments = prepare(shape, options)
    x = normal(shape)
    sinks = options.pop("softmax_aux", None)
    given = x if sinks is None else [*x, sinks]

    def loss(q, k, v, *aux):
        return (ring_attention(q, k, v, softmax_aux=aux[0] if aux else None, **options) ** 2).mean()

    value, grads = jax.value_and_grad(loss, tuple(range(len(given))))(*given)
    dense = Dense(*x, mask, **arguments)
    truth, dheads = dense.gradients(2 * dense.out / dense.out.size)
    np.testing.assert_allclose(value, (dense.out**2).mean(), rtol=1e-5)
    largest = max(np.abs(t).max() for t in truth)
    for mine, true in zip(grads, truth):
        np.testing.assert_allclose(mine, true, rtol=1e-4, atol=1e-5 * largest)
    if sinks is not None:
        share = np.exp(np.asarray(sinks, np.float64) - sinks_of_heads(sinks, shape[2])[..., :1, None])
        per_head = sinks.ndim == 2
        true = share[0] * dheads[:, None] if per_head else (share * dheads[:, None]).sum(0)
        np.testing.assert_allclose(np.squeeze(grads[3]), np.squeeze(true), rtol=1e-4)


@pytest.mark.parametrize("name", ["X16 bias", "X18 bias, window 16"])
def test_bias_is_refused(name):
    window = 16 if "window" in name else None
    with pytest.raises(NotImplementedError, match="bias"):
        ring_attention(*normal(X3), bias=jnp.zeros((2, 4, 64, 64)), sliding_window=window)


@pytest.mark.parametrize("name", SPARSE)
def test_block_sparse_arguments(name):
    shape, options = SPARSE[name]
    options, mask, arguments = prepare(shape, options)
    x = normal(shape, jnp.bfloat16)
    out = ring_attention(*x, **options)
    assert out.shape == shape and out.dtype == jnp.bfloat16
    first = Dense(*(y[:1] for y in x), mask[:1], **arguments).out
    np.testing.assert_allclose(np.asarray(out[:1], np.float64), first, rtol=5e-3, atol=4e-3)


@pytest.mark.parametrize("dtype, blocks", [(np.float16, (64, 64))])
def test_triton_ring_causal_window(dtype, blocks):
    x = normal((1, 64, 4, 32), dtype)
    out = ring_attention(*x, causal=True, sliding_window=(32, 32), fwd_params=BLOCKS(*blocks))
    truth = Dense(*x, visible(64, causal=True, sliding_window=(32, 32))).out
    np.testing.assert_allclose(np.asarray(out, np.float64), truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name, batch, per_device, heads, sinks", [
    ("E24 shard_map", 2, 128, 8, 4), ("V13 distributed", 4, 128, 32, 0),
])  # fmt: skip
def test_distributed(mesh, name, batch, per_device, heads, sinks):
    seq = 8 * per_device
    x = normal((batch, seq, heads, 128))
    aux = -normal((sinks,), n=1)[0] if sinks else None
    spec = P(("dp", "fsdp"), "sp", "tp", None)
    f = jax.shard_map(
        lambda q, k, v: ring_attention(q, k, v, None, None, aux, axis_name="sp"),
        mesh=mesh(("dp", "fsdp", "ep", "tp", "sp"), (1, 1, 1, 1, 8)),
        in_specs=spec, out_specs=spec, check_vma=False,
    )  # fmt: skip
    first = [y[:1, :, :8] for y in x]
    truth = Dense(*first, visible(seq), sinks=aux).out
    np.testing.assert_allclose(jax.jit(f)(*x)[:1, :, :8], truth, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("dim", [128, 256])
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_tokamax_ring(mesh, dim, segmented, causal):
    """One head, 1,024 rows on each of two devices, bfloat16; tolerances are theirs."""
    seq = 2048
    *x, dout = normal((1, seq, 1, dim), jnp.bfloat16, 4, dim**-0.5)
    breaks = np.sort(np.random.default_rng(1).choice(seq, 2, replace=False))
    ids = np.searchsorted(breaks, np.arange(seq), side="right")[None].astype(np.int32)
    f = jax.shard_map(
        lambda q, k, v, i: ring_attention(
            q, k, v, i if segmented else None, causal=causal, softmax_scale=1.0, axis_name="sp"
        ),
        mesh=mesh(shape=(2,)), in_specs=P(None, "sp"), out_specs=P(None, "sp"),
    )  # fmt: skip

    @jax.jit
    def both(q, k, v, i, dout):
        out, pull = jax.vjp(lambda *y: f(*y, i), q, k, v)
        return out, *pull(dout)

    out, *grads = both(*x, jnp.asarray(ids), dout)
    mask = visible(seq, causal=causal, ids=ids if segmented else None)
    dense = Dense(*x, mask, scale=1.0)
    np.testing.assert_allclose(np.asarray(out, np.float64), dense.out, rtol=5e-3, atol=3e-3)
    for mine, true in zip(grads, dense.gradients(dout)[0]):
        np.testing.assert_allclose(np.asarray(mine, np.float64), true, rtol=1e-2, atol=1e-2)
