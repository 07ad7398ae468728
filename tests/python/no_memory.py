# SPDX-License-Identifier: Apache-2.0
"""Run by test_failures.py: a hop that gets no memory for its scratch, and the same call later."""

import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ringattn.jax import ring_attention

KEYS = 1 << 18  # as float32 panels 64 MiB


def virtual_memory():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def main():
    q = jnp.ones((1, 8, 1, 32))
    kv = jnp.ones((1, KEYS, 1, 32))
    f = jax.jit(ring_attention).lower(q, kv, kv).compile()
    without = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (virtual_memory() + (16 << 20), without[1]))
    try:
        jax.block_until_ready(f(q, kv, kv))
    except jax.errors.JaxRuntimeError as error:
        assert "ring_attention: out of memory" in str(error), error
    else:
        raise AssertionError("no error")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, without)
    np.testing.assert_allclose(f(q, kv, kv), q, rtol=1e-5)
    print("out of memory, then well again")


main()
