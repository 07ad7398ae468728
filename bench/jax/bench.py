#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times ring_attention beside plain JAX on CPU devices, in one process.

    python3 bench/jax/bench.py [SEQ] [--dtype float32] [--causal] [--repeats 5]

Three programs of the same shapes: ours, ``jax.nn.dot_product_attention``, and a ring in plain JAX
(each hop an einsum over the block at hand, merged by online softmax). Each is checked against the
second one first; then they take turns, each after a pause in which XLA frees what the one before
used. Medians of the wall clock; the cores that ran meanwhile, which tells whether somebody else was
at work; and how far the resident memory of the process rises above what it was before (its peak is
reset before the first run of each program).
"""

import argparse
import ctypes
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ringattn.jax import ring_attention


def plain_ring(q, k, v, axis, causal):
    """What one writes without a library: float32 state, K and V passed on after each hop."""
    world, me, rows = lax.axis_size(axis), lax.axis_index(axis), q.shape[1]
    q32 = q.astype(jnp.float32) * q.shape[-1] ** -0.5
    acc, top, total = jnp.zeros_like(q32), -jnp.inf, 0.0
    for hop in range(world):
        s = jnp.einsum("bqhd,bkhd->bhqk", q32, k.astype(jnp.float32))
        if causal:
            row = me * rows + jnp.arange(rows)[:, None]
            col = (me - hop) % world * rows + jnp.arange(rows)[None, :]
            s = jnp.where(col <= row, s, -1e30)
        new_top = jnp.maximum(top, s.max(-1))
        p, factor = jnp.exp(s - new_top[..., None]), jnp.exp(top - new_top)
        total = total * factor + p.sum(-1)
        part = jnp.einsum("bhqk,bkhd->bqhd", p, v.astype(jnp.float32))
        acc, top = acc * factor.swapaxes(1, 2)[..., None] + part, new_top
        if hop + 1 < world:
            k, v = (lax.ppermute(x, axis, [(r, (r + 1) % world) for r in range(world)]) for x in (k, v))
    return (acc / total.swapaxes(1, 2)[..., None]).astype(q.dtype)


def programs(causal, devices):
    """name -> attention, on the first `devices`."""
    dpa = lambda *x: jax.nn.dot_product_attention(*x, is_causal=causal)
    if devices == 1:
        return {"ringattn": lambda *x: ring_attention(*x, causal=causal), "jax.nn": dpa}
    mesh = Mesh(np.array(jax.devices()[:devices]), ("sp",))

    def ring(attention):
        spec = P(None, "sp")
        return jax.shard_map(attention, mesh=mesh, in_specs=spec, out_specs=spec)

    return {
        "ringattn": ring(lambda *x: ring_attention(*x, causal=causal, axis_name="sp")),
        "plain ring": ring(lambda *x: plain_ring(*x, "sp", causal)),
    }


def both_passes(attention):
    def run(q, k, v, dout):
        out, pull = jax.vjp(attention, q, k, v)
        return out, *pull(dout)

    return run


def memory(field):
    """VmRSS or VmHWM of this process, MiB."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def rise(run):
    """By how much one run lets the resident memory grow, results included, MiB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = memory("VmRSS")
    jax.block_until_ready(run())
    return memory("VmHWM") - before


def timed(run):
    """Seconds of the wall clock and of all cores."""
    time.sleep(0.1)
    wall, cores = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - wall, time.process_time() - cores


def entry(times):
    """The median, as milliseconds and cores."""
    wall, cores = sorted(times)[len(times) // 2]
    return f"{1e3 * wall:.1f} ({cores / wall:.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("seq", type=int, nargs="?", default=2048)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8])
    a = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(a.devices))
    rng = np.random.default_rng(0)
    shape = (1, a.seq, a.heads, a.dim)
    data = [jnp.asarray(rng.normal(size=shape), a.dtype) for _ in range(4)]
    print(f"JAX {jax.__version__}, {shape}, {a.dtype}{', causal' if a.causal else ''}")
    print("| devices | program | forward, ms (cores) | both passes | memory, MiB (forward, both) |")
    print("|---|---|---|---|---|")
    truth = np.asarray(jax.nn.dot_product_attention(*data[:3], is_causal=a.causal))
    for devices in a.devices:
        runs = {}
        for name, attention in programs(a.causal, devices).items():
            forward = jax.jit(attention).lower(*data[:3]).compile()
            both = jax.jit(both_passes(attention)).lower(*data).compile()
            place = lambda c, xs: [jax.device_put(x, s) for x, s in zip(xs, c.input_shardings[0])]
            runs[name] = [
                lambda f=forward, x=place(forward, data[:3]): f(*x),
                lambda f=both, x=place(both, data): f(*x),
            ]
        table = {name: ([], []) for name in runs}
        grown = {name: [rise(run) for run in pair] for name, pair in runs.items()}  # first runs
        near = 2e-5 if a.dtype == "float32" else 2e-2
        for forward, _ in runs.values():
            mine, theirs = (np.asarray(x, np.float32) for x in (forward(), truth))
            np.testing.assert_allclose(mine, theirs, rtol=near, atol=near)
        for _ in range(a.repeats):
            for name, pair in runs.items():
                for run, times in zip(pair, table[name]):
                    times.append(timed(run))
        for name, pair in table.items():
            memory_of = ", ".join(f"{x:.0f}" for x in grown[name])
            print(f"| {devices} | {name} | {' | '.join(map(entry, pair))} | {memory_of} |")


if __name__ == "__main__":
    main()
