#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times jit(ring_attention) on one GPU beside jax.nn.dot_product_attention(implementation="cudnn").

    python3 bench/gpu/jax_peer.py [results.json]

Random normal bfloat16, H = 16, D = 128 unless said. The two take turns; each time is that of ten calls
enqueued one after another, divided by ten, the median of 15 such. FLOPs: 4 B H S^2 D forward, 2.5 times
that backward, half of it for causal; "both" is forward and backward.
"""

import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from ringattn.jax import ring_attention

CALLS, REPEATS = 10, 15
CASES = [
    # name, batch, seq, heads, kv heads, dim, causal
    ("4k causal", 1, 4096, 16, 16, 128, True),
    ("4k full", 1, 4096, 16, 16, 128, False),
    ("4 x 4k causal", 4, 4096, 16, 16, 128, True),
    ("4k causal GQA 32/8", 1, 4096, 32, 8, 128, True),
    ("16k causal", 1, 16384, 16, 16, 128, True),
    ("4k causal D64 H32", 1, 4096, 32, 32, 64, True),
]


def programs(causal):
    return {
        "ringattn": lambda q, k, v: ring_attention(q, k, v, causal=causal),
        "cudnn": lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, is_causal=causal, implementation="cudnn"
        ),
    }


def both(attention):
    def run(q, k, v, dout):
        out, pull = jax.vjp(attention, q, k, v)
        return out, *pull(dout)

    return run


def milliseconds(f, args):
    begin = time.perf_counter()
    for _ in range(CALLS):
        out = f(*args)
    jax.block_until_ready(out)
    return (time.perf_counter() - begin) / CALLS * 1e3


def measure(name, batch, seq, heads, kv_heads, dim, causal):
    keys = jax.random.split(jax.random.key(0), 4)
    shape = lambda h: (batch, seq, h, dim)
    q, dout = (jax.random.normal(k, shape(heads), jnp.bfloat16) for k in keys[:2])
    k, v = (jax.random.normal(k, shape(kv_heads), jnp.bfloat16) for k in keys[2:])
    flops = 4 * batch * heads * seq * seq * dim / (2 if causal else 1)
    rows = []
    for part, args, work in (("forward", (q, k, v), flops), ("both", (q, k, v, dout), 3.5 * flops)):
        fs = {n: jax.jit(f if part == "forward" else both(f)) for n, f in programs(causal).items()}
        results = {n: jax.block_until_ready(f(*args)) for n, f in fs.items()}
        apart = max(
            float(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max() / jnp.abs(b).max())
            for a, b in zip(jax.tree.leaves(results["ringattn"]), jax.tree.leaves(results["cudnn"]))
        )
        times = {n: [] for n in fs}
        for _ in range(REPEATS):
            for n, f in fs.items():
                times[n].append(milliseconds(f, args))
        ms = {n: statistics.median(t) for n, t in times.items()}
        ratio = ms["cudnn"] / ms["ringattn"]
        rows.append({"case": name, "pass": part, "ms": ms, "ratio": ratio, "apart": apart})
        rates = ", ".join(f"{n} {t:.3f} ms {work / t / 1e9:.0f} TFLOP/s" for n, t in ms.items())
        print(f"{name:20} {part:8} {rates}, {ratio:.2f}x, apart {apart:.1e}", flush=True)
    return rows


def main():
    print(jax.__version__, jax.devices())
    rows = [row for case in CASES for row in measure(*case)]
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump({"jax": jax.__version__, "device": str(jax.devices()[0].device_kind), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
