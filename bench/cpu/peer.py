#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""peer.py jax|torch S H D f32|bf16 full|causal: milliseconds of the peer's attention on one thread, its own layout and
its default implementation: {"forward": ms, "backward": ms}; backward = (forward and backward) - forward."""
import json, os, statistics, sys, time

for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'NPROC'):
    os.environ[name] = '1'
os.environ['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false'
peer, s, h, d, dtype, mask = sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:7]
causal = mask == 'causal'


def with_jax():
    import jax, jax.numpy as jnp
    t = {'f32': jnp.float32, 'bf16': jnp.bfloat16}[dtype]
    q, k, v, g = (jax.random.normal(key, (1, s, h, d), t) for key in jax.random.split(jax.random.key(0), 4))
    attend = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=causal))

    @jax.jit
    def both(q, k, v, g):
        out, vjp = jax.vjp(attend, q, k, v)
        return out, vjp(g)
    return lambda: jax.block_until_ready(attend(q, k, v)), lambda: jax.block_until_ready(both(q, k, v, g))


def with_torch():
    import torch
    torch.set_num_threads(1)
    t = {'f32': torch.float32, 'bf16': torch.bfloat16}[dtype]
    q, k, v, g = (torch.randn(1, h, s, d, dtype=t) for _ in range(4))
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def forward():
        with torch.no_grad():
            attend()

    def both():
        for x in (q, k, v):
            x.requires_grad_()
        torch.autograd.grad(attend(), (q, k, v), g)
    return forward, both


def median_ms(run):
    run()
    times = []
    while len(times) < 3 or (sum(times) < 600 and len(times) < 9):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


forward, both = {'jax': with_jax, 'torch': with_torch}[peer]()
f = median_ms(forward)
print(json.dumps({'forward': f, 'backward': median_ms(both) - f}))
