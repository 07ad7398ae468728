# SPDX-License-Identifier: Apache-2.0
"""One process of several, run by test_failures.py: ADDRESS COUNT ID.

A ring of two devices in each process, values and gradients beside plain attention on one device,
for every layout; then a failure in the last process, of which all hear."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

address, count, me = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(address, count, me)

from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import ringattn  # noqa: E402
from ringattn._library import library  # noqa: E402
from ringattn.jax import ring_attention  # noqa: E402

WORLD, SEQ = 2 * count, 64
MESH = Mesh(np.array(jax.devices()), ("sp",))
SPEC = P(None, "sp")


def plain(q, k, v):
    k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
    s = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    s = jnp.where(np.tril(np.ones((SEQ, SEQ), bool)), s, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(s), v)


def spread(x):
    return jax.make_array_from_callback(x.shape, NamedSharding(MESH, SPEC), lambda i: x[i])


def both(attention):
    return jax.jit(jax.value_and_grad(lambda *x: (attention(*x) ** 2).sum(), (0, 1, 2)))


def ring(layout):
    return jax.shard_map(
        lambda *x: ring_attention(*x, causal=True, layout=layout, axis_name="sp"),
        mesh=MESH, in_specs=SPEC, out_specs=SPEC,
    )  # fmt: skip


def main():
    assert jax.device_count() == WORLD and len(jax.local_devices()) == 2
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(1, SEQ, n, 8)).astype(np.float32) for n in (4, 2, 2)]
    value, grads = (jax.tree.map(np.asarray, y) for y in both(plain)(*x))
    for layout in ringattn.LAYOUTS:
        order = ringattn.order(layout, SEQ, WORLD)
        mine, shards = both(ring(layout))(*(spread(y[:, order]) for y in x))
        np.testing.assert_allclose(float(mine), value, rtol=1e-5)
        for global_array, truth in zip(shards, grads):
            for shard in global_array.addressable_shards:
                np.testing.assert_allclose(
                    shard.data, truth[:, order][shard.index], rtol=1e-4, atol=1e-5
                )
    library().ringattn_test_fail(WORLD - 1, 1)
    try:
        jax.block_until_ready(both(ring("contiguous"))(*map(spread, x)))
    except jax.errors.JaxRuntimeError as error:
        last = f"rank {WORLD - 1} was told to fail"
        assert (last if me == count - 1 else "a rank in another process failed") in str(error)
        print("right, and failed together")
    jax.distributed.shutdown()


main()
