# SPDX-License-Identifier: Apache-2.0
"""Run by test_failures.py: a hop of one rank fails, and later programs of the process work."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ringattn._library import library
from ringattn.jax import ring_attention

jax.config.update("jax_num_cpu_devices", 4)
SPEC = P(None, "sp")
RING = jax.shard_map(
    lambda *x: ring_attention(*x, axis_name="sp"),
    mesh=Mesh(np.array(jax.devices()[:4]), ("sp",)), in_specs=SPEC, out_specs=SPEC,
)  # fmt: skip


def layers(*x):  # other transfers come after the one that fails
    return RING(RING(*x), *x[1:])


def attempt(f, args, rank, offset):
    expected = jax.block_until_ready(f(*args))
    library().ringattn_test_fail(rank, offset)
    try:
        jax.block_until_ready(f(*args))
    except jax.errors.JaxRuntimeError as error:
        assert f"ring_attention: rank {rank} was told to fail" in str(error), error
    else:
        raise AssertionError("no error")
    finally:
        library().ringattn_test_fail(-1, 0)
    for x, y in zip(jax.tree.leaves(f(*args)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def main():
    args = [jnp.asarray(np.random.default_rng(i).normal(size=(1, 64, 2, 8)), jnp.float32) for i in range(3)]
    loss = lambda *x: layers(*x).sum()
    for rank, offset in ((0, 0), (1, 2), (3, 3)):
        attempt(jax.jit(RING), args, rank, offset)
        attempt(jax.jit(jax.value_and_grad(loss, (0, 1, 2))), args, rank, offset)
    attempt(jax.jit(jax.vmap(RING)), [jnp.stack([x, 2 * x]) for x in args], 2, 1)
    print("all ranks failed together")


main()
