# SPDX-License-Identifier: Apache-2.0
"""Without shard_map, on a mesh whose axes the compiler (or the types) spread batch and heads over:
nothing is gathered, and values and gradients are those of one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ringattn.jax import ring_attention

BOTH = P("dp", None, "tp")
MOVES = "all-gather|all-to-all|collective-permute"
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
