# SPDX-License-Identifier: Apache-2.0
"""On a mesh whose axes the compiler (or the types) spread batch and heads over, without shard_map or
beside a ring: nothing is gathered; values and gradients are those of one device, and float64's."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import Dense as Truth
from dense import visible
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ringattn._partition
from ringattn.jax import ring_attention

BOTH = P("dp", None, "tp")
GATHERS = "all-gather|all-to-all"
MOVES = GATHERS + "|collective-permute"
RNG = np.random.default_rng(0)
IDS = jnp.asarray(np.repeat(np.arange(4), 8)[None].repeat(4, 0), jnp.int32)


def data(g=4, h=8, lead=(4,)):
    return tuple(
        jnp.asarray(RNG.normal(size=(*lead, 32, n, 8)), jnp.float32) for n in (h, g, g)
    )


class Dense:
    """A mask that nothing knows."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __getitem__(self, index):
        return self.array[index]


BAND = np.tril(np.ones((32, 32), bool)) & ~np.tril(np.ones((32, 32), bool), -9)


def band(_q, _k, _heads, head, _reps):
    return Dense(BAND if head < 8 else ~BAND)


def causal(*x):
    return ring_attention(*x, causal=True)


def with_sinks(q, k, v, sinks):
    return ring_attention(
        q, k, v, IDS, softmax_aux=sinks, logits_soft_cap=5.0, return_lse=True
    )


CASES = {
    "batch and heads": (causal, data(), [BOTH] * 3),
    "batch": (causal, data(), [P("dp")] * 3),
    "heads": (causal, data(), [P(None, None, "tp")] * 3),
    "as many kv heads": (causal, data(g=8), [BOTH] * 3),
    "one kv head": (causal, data(g=1), [BOTH, P("dp"), P("dp")]),
    "sinks of heads": (with_sinks, (*data(), jnp.linspace(-1, 1, 8)), [BOTH] * 3 + [P("tp")]),
    # Two sinks for all, where a device has two heads.
    "shared sinks": (with_sinks, (*data(), jnp.array([0.5, 2.0])), [BOTH] * 3 + [P()]),
    "several sinks": (with_sinks, (*data(), jnp.ones((8, 3))), [BOTH] * 3 + [P("tp")]),
    "mask": (lambda *x: ring_attention(*x, mask_builder=band), data(), [BOTH] * 3),
    "vmap": (jax.vmap(causal), data(lead=(2, 2)), [P("dp", None, None, "tp")] * 3),
    "vmap of queries": (
        lambda q, k, v: jax.vmap(causal, (0, None, None))(q, k[0], v[0]),
        data(lead=(2, 2)), [P("dp", None, None, "tp"), P(None, None, None, "tp"), P(None, None, None, "tp")],
    ),
    "layers": (
        lambda q, k, v: jax.lax.scan(
            lambda x, _: (x + jax.checkpoint(causal)(x, k, v), None), q, None, length=2
        )[0],
        data(), [BOTH] * 3,
    ),
}  # fmt: skip


def both_passes(f, n):
    def run(*x):
        value = lambda *y: sum((z**2).sum() for z in jax.tree.leaves(f(*y)))
        return f(*x), jax.grad(value, tuple(range(n)))(*x)

    return jax.jit(run)


def spread(f, args, specs, on):
    """The results of both passes with arguments that lie so, and the compiled program."""
    args = [jax.device_put(x, NamedSharding(on, spec)) for x, spec in zip(args, specs)]
    program = both_passes(f, len(args)).lower(*args).compile()
    return program(*args), program.as_text()


def close(out, expected):
    for x, y in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_automatic_axes(name, mesh):
    f, args, specs = CASES[name]
    on = mesh(("dp", "tp"), (2, 4))
    (out, grads), text = spread(f, args, specs, on)
    assert not re.search(MOVES, text)
    for x, grad, spec in zip(args, grads, specs):
        assert grad.sharding.is_equivalent_to(NamedSharding(on, spec), x.ndim)
    close((out, grads), both_passes(f, len(args))(*args))


def test_explicit_axes():
    on = jax.make_mesh((2, 4), ("dp", "tp"), axis_types=(AxisType.Explicit,) * 2)
    args = data()
    with jax.set_mesh(on):
        out, text = spread(causal, args, [BOTH] * 3, on)
    assert not re.search(MOVES, text)
    close(out, both_passes(causal, 3)(*args))


def test_what_cannot_be_spread_is_gathered_and_right(mesh):
    on = mesh(("dp", "tp"), (2, 4))
    other = lambda _q, _k, _heads, head, _reps: Dense(BAND if head < 4 else BAND.T)
    args = data()
    for f, spec in (
        (causal, P("dp", "tp")),  # the sequence: shard_map and axis_name are for that
        (lambda *x: ring_attention(*x, mask_builder=other), BOTH),
    ):
        out, _ = spread(f, args, [spec] * 3, on)
        close(out, both_passes(f, 3)(*args))


def ring(call, ins, axes=("sp",), **options):
    """call("sp", ...) in a shard_map that is manual over `axes` alone."""
    make = lambda on: jax.shard_map(
        lambda *x: call("sp", *x), mesh=on, in_specs=ins, out_specs=P(None, "sp"),
        axis_names=set(axes), **options,
    )  # fmt: skip
    return make


def causal_ring(axis, q, k, v, sinks=None):
    return ring_attention(q, k, v, causal=True, softmax_aux=sinks, axis_name=axis)


def ids_ring(axis, q, k, v, ids):
    return ring_attention(q, k, v, ids, axis_name=axis)


SP = P(None, "sp")
DP, TP = P("dp", "sp"), P(None, "sp", "tp")
DP_SP, TP_SP = (("dp", "sp"), (2, 4)), (("tp", "sp"), (2, 4))
THREE = (("dp", "tp", "sp"), (2, 2, 2))
# Function, arguments, where they lie outside, what the shard_map says of them, mesh.
RINGS = {
    "batch": (causal_ring, data(), [DP] * 3, (SP,) * 3, DP_SP),
    "heads": (causal_ring, data(), [TP] * 3, (SP,) * 3, TP_SP),
    "heads inside": (causal_ring, data(), [TP] * 3, (SP,) * 3, (("sp", "tp"), (4, 2))),
    "one kv head": (causal_ring, data(g=1), [TP, SP, SP], (SP,) * 3, TP_SP),
    "both": (causal_ring, data(), [P("dp", "sp", "tp")] * 3, (SP,) * 3, THREE),
    "both, the other way": (causal_ring, data(), [P("tp", "sp", "dp")] * 3, (SP,) * 3, THREE),
    "sinks, batch": (
        causal_ring, (*data(), jnp.linspace(-1, 1, 8)), [DP] * 3 + [P()], (SP, SP, SP, P()), DP_SP,
    ),
    "sinks, heads": (
        causal_ring, (*data(), jnp.linspace(-1, 1, 8)), [TP] * 3 + [P("tp")], (SP, SP, SP, P()), TP_SP,
    ),
    "shared sinks": (
        causal_ring, (*data(), jnp.array([0.5, 2.0])), [P("dp", "sp", "tp")] * 3 + [P()],
        (SP, SP, SP, P()), THREE,
    ),
}  # fmt: skip


def truth(q, k, v, mask, sinks=None):
    """out, and the gradients of the sum of its squares, in float64."""
    group = q.shape[2] // k.shape[2]
    dense = Truth(q, *(np.repeat(x, group, axis=2) for x in (k, v)), mask, sinks=sinks)
    grads, dheads = dense.gradients(2 * dense.out)
    grouped = lambda x: x.reshape(*k.shape[:3], group, -1).sum(3)
    grads = [grads[0], grouped(grads[1]), grouped(grads[2])]
    if sinks is not None and len(sinks) == len(dheads):
        grads.append(dheads)
    elif sinks is not None:
        share = np.exp(np.asarray(sinks, np.float64))
        grads.append(dheads.sum() * share / share.sum())
    return [dense.out, *grads]


@pytest.mark.parametrize("name, check_vma", [*((name, True) for name in RINGS), ("both", False)])
def test_automatic_axes_beside_a_ring(name, check_vma, mesh):
    f, args, specs, ins, on = RINGS[name]
    on = mesh(*on)
    out, text = spread(ring(f, ins, check_vma=check_vma)(on), args, specs, on)
    assert not re.search(GATHERS, text)
    close(out, truth(*args[:3], visible(32, causal=True), *args[3:]))


def test_unequal_automatic_axes_beside_a_ring():
    script = Path(__file__).parent / "unequal_axes.py"
    run = subprocess.run([sys.executable, "-P", script], text=True, capture_output=True, timeout=300)
    assert "nothing gathered" in run.stdout, run.stderr[-4000:]


def test_a_ring_beside_automatic_axes_without_jit(mesh):
    args = data()
    out = ring(causal_ring, (SP,) * 3)(mesh(*DP_SP))(*args)
    close(out, truth(*args, visible(32, causal=True))[0])


def test_segment_ids_beside_a_ring(mesh):
    on = mesh(*DP_SP)
    args = data()
    f = lambda on: lambda *x: ring(ids_ring, (SP,) * 4)(on)(*x, IDS)
    out, text = spread(f(on), args, [DP] * 3, on)
    assert not re.search(GATHERS, text)
    close(out, truth(*args, visible(32, ids=np.asarray(IDS))))


@pytest.mark.parametrize("axes", [0, (0, None, None)])
def test_vmap_of_a_ring_beside_automatic_axes(axes, mesh):
    on = mesh(*THREE)
    q, k, v = data(lead=(2, 2))
    k, v = (k, v) if axes == 0 else (k[0], v[0])
    inside = P(None, None, "sp")
    specs = [P("dp", None, "sp", "tp")] + [
        P("dp", None, "sp", "tp") if axes == 0 else P(None, "sp", "tp")
    ] * 2
    each = lambda axis: jax.vmap(lambda *x: causal_ring(axis, *x), axes)
    f = jax.shard_map(
        lambda *x: each("sp")(*x), mesh=on, axis_names={"sp"}, out_specs=inside,
        in_specs=(inside, *([inside] if axes == 0 else [SP]) * 2),
    )  # fmt: skip
    out, text = spread(f, (q, k, v), specs, on)
    assert not re.search(GATHERS, text)
    close(out, both_passes(each(None), 3)(q, k, v))


def test_layers_of_a_ring_beside_automatic_axes(mesh):
    def layers(axis, q, k, v):
        once = jax.checkpoint(lambda x: causal_ring(axis, x, k, v))
        return jax.lax.scan(lambda x, _: (x + once(x), None), q, None, length=2)[0]

    on, args = mesh(*THREE), data()
    out, text = spread(ring(layers, (SP,) * 3)(on), args, [P("dp", "sp", "tp")] * 3, on)
    assert not re.search(GATHERS, text)
    close(out, both_passes(lambda *x: layers(None, *x), 3)(*args))


def test_masks_of_heads_beside_a_ring_are_gathered_and_right(mesh):
    other = lambda _q, _k, _heads, head, _reps: Dense(BAND if head < 4 else BAND.T)
    masked = lambda axis, *x: ring_attention(*x, mask_builder=other, axis_name=axis)
    on, args = mesh(*THREE), data()
    out, _ = spread(ring(masked, (SP,) * 3)(on), args, [P("dp", "sp", "tp")] * 3, on)
    close(out, both_passes(lambda *x: masked(None, *x), 3)(*args))


def test_a_ring_that_cannot_be_spread_is_gathered_and_right(mesh, monkeypatch):
    monkeypatch.setattr(ringattn._partition, "BESIDE_MANUAL_AXES", False)
    on, args = mesh(*DP_SP), data()
    out, text = spread(ring(causal_ring, (SP,) * 3)(on), args, [DP] * 3, on)
    assert re.search(GATHERS, text)
    close(out, truth(*args, visible(32, causal=True)))


def test_no_ring_beside_a_manual_axis(mesh):
    on, args = mesh(("dp", "pp"), (2, 4)), data()
    f = jax.shard_map(causal, mesh=on, in_specs=(P(),) * 3, out_specs=P(), axis_names={"pp"})
    out, text = spread(f, args, [P("dp")] * 3, on)
    assert not re.search(GATHERS, text)
    close(out, truth(*args, visible(32, causal=True)))


def test_second_derivatives_are_refused_beside_automatic_axes(mesh):
    f, args = ring(causal_ring, (SP,) * 3)(mesh(*DP_SP)), data()
    first = jax.grad(lambda *x: f(*x).sum())
    with pytest.raises(NotImplementedError, match="second derivatives"):
        jax.jit(jax.grad(lambda *x: first(*x).sum()))(*args)
