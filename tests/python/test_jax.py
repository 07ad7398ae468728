# SPDX-License-Identifier: Apache-2.0
"""What only JAX has: transforms, meshes, export, compiled programs, and errors."""

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as sm
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import ringattn.jax
from ringattn._calls import accumulate, register
from ringattn.jax import ring_attention

SHARD = P(None, "sp")


def data(b=2, s=32, h=4, g=2, d=8, dtype=np.float32):
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.normal(size=(b, s, n, d)), dtype) for n in (h, g, g)
    )


def plain(q, k, v, mask=None):
    """Float64-free plain attention of [B, S, H, D]; mask [S, S] or [H, S, S]."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    s = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    if mask is not None:
        s = jnp.where(mask, s, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(s), v)


def causal_mask(s):
    return np.tril(np.ones((s, s), bool))


def ring(mesh, check_vma=True, **options):
    return jax.shard_map(
        lambda *x: ring_attention(*x, **options, axis_name="sp"),
        mesh=mesh, in_specs=SHARD, out_specs=SHARD, check_vma=check_vma,
    )  # fmt: skip


def loss(f):
    return lambda *x: (f(*x).astype(jnp.float32) ** 2).sum()


def close(a, b, tolerance=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_gradients_by_finite_differences(mesh):
    for f in (functools.partial(ring_attention, causal=True), jax.jit(ring(mesh(shape=(2,)), causal=True))):
        check_grads(f, data(1, 6, 2, 1, 4), 1, ["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_replicated_sink_is_counted_once(mesh, check_vma):
    x, sinks = data(), jnp.array([0.5, -1.0, 0.0, 2.0])
    one = jax.grad(lambda s: loss(lambda *y: ring_attention(*y, softmax_aux=s))(*x))(sinks)
    f = jax.shard_map(
        lambda s, *y: ring_attention(*y, softmax_aux=s, axis_name="sp"),
        mesh=mesh(), in_specs=(P(), SHARD, SHARD, SHARD), out_specs=SHARD, check_vma=check_vma,
    )  # fmt: skip
    close(jax.jit(jax.grad(lambda s: (f(s, *x) ** 2).sum()))(sinks), one)


def test_two_ends_of_one_beginning(mesh):
    """XLA makes one first hop of two equal ones: the second hop that goes on from its state may not
    find there what the first one wrote."""
    on = mesh(shape=(2,))
    call = jax.shard_map(
        lambda q, k, v, sinks: ring_attention(q, k, v, softmax_aux=sinks, axis_name="sp"),
        mesh=on, in_specs=(*[SHARD] * 3, P()), out_specs=SHARD,
    )  # fmt: skip
    args, sinks = data(), (jnp.zeros(4), jnp.ones(4))
    both = jax.jit(lambda *x: [call(*x, s) for s in sinks])
    close(both(*args), [ring_attention(*args, softmax_aux=s) for s in sinks])


def test_vmap_inside_and_outside_of_shard_map(mesh):
    x = [jnp.stack([y, 2 * y]) for y in data()]
    one = jax.vmap(jax.grad(loss(lambda *y: ring_attention(*y, causal=True)), (0, 1, 2)))(*x)
    close(one, [jnp.stack(g) for g in zip(*[
        jax.grad(loss(lambda *y: plain(*y, causal_mask(32))), (0, 1, 2))(*[y[i] for y in x])
        for i in range(2)])], 1e-4)  # fmt: skip
    f = ring(mesh(), causal=True)
    close(jax.jit(jax.vmap(jax.grad(loss(f), (0, 1, 2))))(*x), one, 1e-4)
    inner = jax.shard_map(
        jax.vmap(lambda *y: ring_attention(*y, causal=True, axis_name="sp")),
        mesh=mesh(), in_specs=P(None, None, "sp"), out_specs=P(None, None, "sp"),
    )  # fmt: skip
    close(jax.jit(jax.grad(loss(inner), (0, 1, 2)))(*x), one, 1e-4)


@pytest.mark.parametrize("check_vma", [True, False])
def test_vmap_over_an_axis_of_the_mesh(mesh, check_vma):
    x, together = [jnp.stack([y, 2 * y]) for y in data()], functools.partial(ring_attention, causal=True)
    f = ring(mesh(("dp", "sp"), (2, 4)), check_vma, causal=True)
    close(
        jax.jit(jax.grad(loss(jax.vmap(f, spmd_axis_name="dp")), (0, 1, 2)))(*x),
        jax.grad(loss(jax.vmap(together)), (0, 1, 2))(*x), 1e-4,
    )  # fmt: skip


def test_a_ring_over_two_axes(mesh):
    both = P(None, ("a", "b"))
    f = jax.shard_map(
        lambda *y: ring_attention(*y, causal=True, axis_name=("a", "b")),
        mesh=mesh(("a", "b"), (2, 4)), in_specs=both, out_specs=both,
    )  # fmt: skip
    one = functools.partial(ring_attention, causal=True)
    close(jax.jit(jax.grad(loss(f), (0, 1, 2)))(*data()), jax.grad(loss(one), (0, 1, 2))(*data()), 1e-4)


def test_vmap_keeps_one_copy_of_what_is_not_batched():
    q, k, v = data()
    qs = jnp.stack([q, -q])
    f = jax.vmap(ring_attention, (0, None, None))
    close(f(qs, k, v), jnp.stack([plain(q, k, v), plain(-q, k, v)]))


def test_vmap_of_a_ring_with_one_dout(mesh):
    q, k, v = data()
    pull = lambda f, k: jax.vjp(f, q, k, v)[1](q)  # q is dout, too
    ks = jnp.stack([k, -k])
    expected = [jnp.stack(g) for g in zip(*[pull(plain, k) for k in ks])]
    close(jax.jit(jax.vmap(lambda k: pull(ring(mesh()), k)))(ks), expected)


@pytest.mark.parametrize("batched", [False, True])
def test_sums_are_added_only_where_they_come_home(batched):
    register()
    totals, part = [jnp.ones((2, 3)), jnp.full((2, 2), 2.0)], jnp.arange(12.0)
    added = [totals[0] + part[:6].reshape(2, 3), totals[1] + part[6:10].reshape(2, 2)]
    there = jnp.array([1, 0], jnp.int32)
    if batched:
        given = jax.vmap(accumulate, (0, None, None, None))(there, part, *totals)
    else:
        given = [jnp.stack(x) for x in zip(*[accumulate(t, part, *totals) for t in there])]
    for x, new, old in zip(given, added, totals, strict=True):
        np.testing.assert_array_equal(x, np.stack([new, old]))


def test_scan_over_layers_with_remat(mesh):
    q, k, v = data(h=2)
    policy = jax.checkpoint_policies.save_only_these_names(*ringattn.jax.remat_names)

    def layers(attention):
        @jax.checkpoint
        def layer(x, w):
            return x + attention(x * w, k, v), None

        return lambda x: (jax.lax.scan(layer, x, jnp.ones(3))[0] ** 2).sum()

    expected = jax.grad(layers(lambda *x: plain(*x, causal_mask(32))))(q)
    close(jax.jit(jax.grad(layers(ring(mesh(), causal=True))))(q), expected, 1e-3)
    saved = jax.checkpoint(ring(mesh(), causal=True), policy=policy)
    close(jax.jit(jax.grad(loss(saved)))(q, k, v), jax.grad(loss(ring(mesh(), causal=True)))(q, k, v))


def test_under_remat_the_ring_runs_once_if_its_names_are_kept(mesh):
    policy = jax.checkpoint_policies.save_only_these_names(*ringattn.jax.remat_names)
    x, f = data(), lambda *y: jnp.tanh(ring(mesh())(*y))
    transfers = lambda g: permutes(jax.jit(jax.grad(loss(g), (0, 1, 2))).lower(*x).compile())
    assert transfers(jax.checkpoint(f, policy=policy)) == transfers(f) == 21
    if jax.__version_info__ >= (0, 11, 2):  # before, XLA itself found what was computed twice
        assert transfers(jax.checkpoint(f)) == 28


@pytest.mark.parametrize("axes", [("dp", "sp"), ("tp", "sp")])
def test_meshes_that_shard_batch_or_heads_too(mesh, axes):
    x = data()
    spec = P("dp", "sp") if axes[0] == "dp" else P(None, "sp", "tp")
    f = jax.shard_map(
        lambda *y: ring_attention(*y, causal=True, axis_name="sp"),
        mesh=mesh(axes, (2, 4)), in_specs=spec, out_specs=spec,
    )  # fmt: skip
    close(
        jax.jit(jax.grad(loss(f), (0, 1, 2)))(*x),
        jax.grad(loss(lambda *y: plain(*y, causal_mask(32))), (0, 1, 2))(*x),
    )


def test_export_and_ahead_of_time(mesh):
    x = data()
    f = jax.jit(ring(mesh(), causal=True))
    close(f.lower(*x).compile()(*x), plain(*x, causal_mask(32)))
    one = jax.jit(lambda *y: ring_attention(*y, causal=True))
    checks = ringattn.jax.export_targets()
    blob = export.export(one, disabled_checks=checks)(*x).serialize(vjp_order=1)
    loaded = export.deserialize(blob).call
    close(loaded(*x), plain(*x, causal_mask(32)))
    close(jax.grad(loss(loaded), (0, 1, 2))(*x), jax.grad(loss(one), (0, 1, 2))(*x))


def test_export_for_any_batch():
    one = jax.jit(lambda *y: ring_attention(*y, causal=True))
    (b,) = export.symbolic_shape("b")
    types = [jax.ShapeDtypeStruct((b, *y.shape[1:]), y.dtype) for y in data()]
    exported = export.export(one, disabled_checks=ringattn.jax.export_targets())(*types)
    for batch in (1, 3):
        close(exported.call(*data(b=batch)), one(*data(b=batch)))


@pytest.mark.parametrize(
    "make",
    [
        lambda s: sm.CausalMask(s),
        lambda s: sm.CausalMask(s, offset=3),
        lambda s: sm.LocalMask(s, (5, None), offset=2),
        lambda s: sm.ChunkedCausalMask(s, 12),
        lambda s: sm.FullMask(s),
        lambda s: sm.NumpyMask(causal_mask(s[0])[::-1].copy() | np.eye(s[0], dtype=bool)),
        lambda s: sm.CausalMask(s) & sm.LocalMask(s, (7, 7), offset=0),
        lambda s: sm.LocalMask(s, (2, 0), offset=0) | sm.ChunkedCausalMask(s, 8),
    ],
)
def test_masks_of_splash_attention(mesh, make):
    x, m = data(), make((32, 32))
    f = ring(mesh(), mask_builder=lambda q, k, h, i, r: make((q, k)))
    close(jax.jit(f)(*x), plain(*x, m[:, :]))


def test_a_mask_of_each_head(mesh):
    x = data()
    masks = [sm.CausalMask((32, 32)), sm.LocalMask((32, 32), (4, 4), offset=0)]
    asked = []

    def builder(*args):
        asked.append(args)
        return masks[args[3] // 2]

    f = ring(mesh(), mask_builder=builder)
    expected = np.stack([masks[h // 2][:, :] for h in range(4)])
    close(
        jax.jit(jax.grad(loss(f), (0, 1, 2)))(*x),
        jax.grad(loss(lambda *y: plain(*y, expected)), (0, 1, 2))(*x),
    )
    assert {a for a in asked} == {(32, 32, 4, h, 2) for h in range(4)}


def test_a_mask_that_knows_its_shape_is_never_asked_for_all_of_it():
    class Stripes:
        shape = (20000, 20000)
        largest = 0

        def __getitem__(self, index):
            rows, keys = (np.arange(i.start, i.stop) for i in index)
            Stripes.largest = max(Stripes.largest, rows.size * keys.size)
            return rows[:, None] // 64 == keys[None, :] // 64

    q = jnp.ones((1, 20000, 1, 4))
    close(ring_attention(q, q, q, mask_builder=lambda *a: Stripes()), q)
    assert Stripes.largest <= 64 * 4096


def permutes(program):
    return len(re.findall(r"= \S+ collective-permute(?:-start)?\(", program.as_text()))


def temporary(program):
    return program.memory_analysis().temp_size_in_bytes


def test_the_compiled_program(mesh):
    x = [jnp.ones((1, 8 * 256, 2, 32)) for _ in range(3)]
    f = ring(mesh())
    forward = jax.jit(f).lower(*x).compile()
    backward = jax.jit(jax.grad(loss(f), (0, 1, 2))).lower(*x).compile()
    assert permutes(forward) == 7
    assert permutes(backward) == 7 + 7 + 7  # forward, keys again, their sums
    for program in (forward, backward):
        text = program.as_text()
        assert "all-gather" not in text
        assert not re.search(r"\[(\d+,)*(256|2048),(256|2048)\]", text)
        assert not re.search(r"= f32\[1,\d+\]\S* copy\(", text)  # of states
    # A causal window of one shard reaches one shard back: one transfer.
    near = jax.jit(ring(mesh(), causal=True, sliding_window=256)).lower(*x).compile()
    assert permutes(near) == 1


REACHES = [
    {}, {"causal": True}, {"causal": True, "layout": "zigzag"}, {"sliding_window": 300},
    {"sliding_window": 900},
]  # fmt: skip


@pytest.mark.parametrize("options", REACHES)
@pytest.mark.parametrize("dtype, shards", [(jnp.float32, 10), (jnp.bfloat16, 20)])
def test_memory_of_a_gradient(mesh, options, dtype, shards):
    """In query shards of the dtype. Sums of dK and dV are float32; a window that reaches both ways in
    16 bits is more, as docs/jax.md says."""
    x = [jnp.ones((1, 8 * 256, 2, 32), dtype) for _ in range(3)]
    program = jax.jit(jax.grad(loss(ring(mesh(), **options)), (0, 1, 2))).lower(*x).compile()
    more = 3 if dtype == jnp.bfloat16 and "sliding_window" in options else 0
    assert temporary(program) <= (shards + more) * 256 * 2 * 32 * x[0].dtype.itemsize


def test_memory_of_compiled_programs(mesh):
    """In query shards. At the fullest moment of the backward: the block here and the one coming
    (4), this step's sums and those that wait to be added (4), dQ, and rows of lse and delta; the
    own sums lie where dK and dV will, and dout where dQ will. q, k and v are the caller's."""
    f = ring(mesh())
    shard = 256 * 2 * 32 * 4
    q, k, v, dout = (jnp.ones((1, 8 * 256, 2, 32)) for _ in range(4))
    assert temporary(jax.jit(f).lower(q, k, v).compile()) <= 6 * shard

    def passes(q, keys, dout):
        def layers(q, keys):
            for k, v in keys:
                q = f(q, k, v)
            return q

        out, pull = jax.vjp(layers, q, keys)
        return out, pull(dout)

    one, three = (
        temporary(jax.jit(passes).lower(q, [(k, v)] * n, dout).compile()) for n in (1, 3)
    )
    assert one <= 10 * shard
    residuals = shard + shard // 32  # out and lse of a layer; q, k and v are there anyway
    assert three <= 1.2 * 3 * residuals + one
    # With a loss in the same program out and dout are temporary too.
    assert temporary(jax.jit(jax.grad(loss(f), (0, 1, 2))).lower(q, k, v).compile()) <= 10 * shard


BAD = [
    (TypeError, "query", lambda q, k, v: (q[0], k, v), {}),
    (TypeError, "key", lambda q, k, v: (q, k.astype(jnp.int32), v), {}),
    (ValueError, "query, key, value", lambda q, k, v: (q, k[:, :, :, :4], v), {}),
    (ValueError, "query heads", lambda q, k, v: (q[:, :, :3], k, v), {}),
    (NotImplementedError, "bias", None, {"bias": np.zeros(1)}),
    (ValueError, "chunk_size", None, {"chunk_size": 0}),
    (ValueError, "sliding_window", None, {"sliding_window": -1}),
    (ValueError, "sliding_window", None, {"sliding_window": (1, 2, 3)}),
    (TypeError, "sliding_window", None, {"sliding_window": 1.5}),
    (ValueError, "logits_soft_cap", None, {"logits_soft_cap": 0.0}),
    (ValueError, "softmax_scale", None, {"softmax_scale": float("nan")}),
    (TypeError, "causal", None, {"causal": 1}),
    (ValueError, "axis_name.*jax.shard_map", None, {"axis_name": "sp"}),
    (TypeError, "axis_name", None, {"axis_name": 3}),
    (ValueError, "softmax_aux", None, {"softmax_aux": np.zeros(0, np.float32)}),
    (TypeError, "softmax_aux", None, {"softmax_aux": np.zeros(4, np.int32)}),
    (TypeError, "q_segment_ids", None, {"q_segment_ids": np.zeros((2, 32), np.float32)}),
    (ValueError, "q_segment_ids", None, {"q_segment_ids": np.zeros((2, 31), np.int32)}),
    (ValueError, "kv_positions", None, {"q_positions": np.arange(32, dtype=np.int32)}),
    (ValueError, "layout", None, {"layout": "spiral"}),
    (TypeError, "fwd_params", None, {"fwd_params": 128}),
    (ValueError, "mask_builder", None, {"mask_builder": lambda *a: 0, "causal": True}),
    (ValueError, "mask_builder", None, {"mask_builder": lambda *a: sm.CausalMask((8, 8))}),
    (TypeError, "mask_builder", None, {"mask_builder": 3}),
]


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("error, words, change, options", BAD)
def test_bad_calls_are_refused_when_traced(error, words, change, options, jitted):
    x = change(*data()) if change else data()
    f = lambda *y: ring_attention(*y, **options)
    with pytest.raises(error, match=words):
        (jax.jit(f) if jitted else f)(*x)


def test_second_derivatives_and_forward_mode_are_refused():
    x = data()
    with pytest.raises(NotImplementedError, match="second derivatives"):
        jax.grad(lambda q: (jax.grad(loss(ring_attention))(q, *x[1:]) ** 2).sum())(x[0])
    with pytest.raises(TypeError, match="jvp"):
        jax.jvp(ring_attention, x, x)


def test_sharded_batch_donation_and_weak_types():
    x = data()
    f = jax.jit(lambda *y: ring_attention(*y), donate_argnums=0)
    expected = plain(*x)
    close(f(x[0] + 0, *x[1:]), expected)
    close(ring_attention(*[np.asarray(y) for y in x]), expected)
    weak = jnp.full((1, 2, 1, 4), 2.0)
    close(jax.grad(loss(ring_attention))(weak, weak, weak), jnp.zeros_like(weak))
    devices = NamedSharding(jax.sharding.Mesh(np.array(jax.devices()[:2]), ("dp",)), P("dp"))
    close(jax.jit(ring_attention)(*[jax.device_put(y, devices) for y in x]), expected)


def test_import_needs_no_jax():
    code = "import ringattn, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
