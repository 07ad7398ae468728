# SPDX-License-Identifier: Apache-2.0
"""Real input, and the example that trains."""

import json
import runpy
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from conftest import ROOT
from jax.sharding import PartitionSpec as P

from ringattn.jax import ring_attention

DTYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "BF16": ml_dtypes.bfloat16}


def read(name):
    raw = (ROOT / "examples/data" / name).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    tensors = {}
    for key, entry in json.loads(raw[8 : 8 + size]).items():
        if key != "__metadata__":
            begin, end = (8 + size + n for n in entry["data_offsets"])
            tensors[key] = np.frombuffer(raw[begin:end], DTYPES[entry["dtype"]]).reshape(
                entry["shape"]
            )
    return tensors


def test_the_packed_minilm_input_on_four_devices(mesh):
    x, expected = read("minilm_packed_2k.safetensors"), read("minilm_packed_2k.expected.safetensors")
    f = jax.shard_map(
        lambda q, k, v, ids: ring_attention(q, k, v, ids, axis_name="sp"),
        mesh=mesh(shape=(4,)), in_specs=P(None, "sp"), out_specs=P(None, "sp"),
    )  # fmt: skip

    def naive(q, k, v, ids):
        s = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * 32**-0.5
        same = (ids[:, None, :, None] == ids[:, None, None, :]) & (ids >= 0)[:, None, :, None]
        p = jnp.where(same, jax.nn.softmax(jnp.where(same, s, -1e30)), 0.0).astype(v.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", p, v, preferred_element_type=jnp.float32).astype(
            v.dtype
        )

    def both(attention):
        def run(q, k, v, ids, dout):
            out, pull = jax.vjp(lambda *y: attention(*y, ids), q, k, v)
            return out, *pull(dout)

        inputs = (x[n] for n in ("query", "key", "value", "q_segment_ids", "dout"))
        return jax.jit(run)(*inputs)

    for name, ours, plain in zip(("out", "dquery", "dkey", "dvalue"), both(f), both(naive)):
        truth = expected[name].astype(np.float64)
        error = lambda y: np.asarray(y, np.float64)[:, :, expected["heads"]] - truth
        rms = lambda y: np.sqrt((error(y) ** 2).mean())
        # The contract: at most twice the error of plain attention in the same dtype.
        assert rms(ours) <= 2 * rms(plain), (name, rms(ours), rms(plain))
        largest = np.abs(truth).max()
        assert np.abs(error(ours)).max() <= 2 * np.abs(error(plain)).max() + 2**-7 * largest, name


def test_a_forward_that_is_differentiated_is_one_that_is_asked_for_lse(mesh):
    x = read("minilm_packed_2k.safetensors")
    inputs = [x[n] for n in ("query", "key", "value", "q_segment_ids")]

    def out(return_lse):
        def local(q, k, v, ids):
            got = ring_attention(q, k, v, ids, axis_name="sp", return_lse=return_lse)
            return got[0] if return_lse else got

        return jax.shard_map(
            local, mesh=mesh(shape=(4,)), in_specs=P(None, "sp"), out_specs=P(None, "sp")
        )

    def differentiated(q, k, v, ids):
        return jax.vjp(lambda *y: out(False)(*y, ids), q, k, v)[0]

    asked = np.asarray(jax.jit(out(True))(*inputs))
    for f in (differentiated, jax.checkpoint(differentiated)):
        assert (np.asarray(jax.jit(f)(*inputs)) == asked).all()


def test_the_training_example_agrees_with_plain_attention():
    example = runpy.run_path(str(ROOT / "examples/jax/train.py"))
    ring, plain = (example["train"](a) for a in example["attentions"]())
    assert all(b < a for a, b in zip(ring, ring[1:])), ring
    np.testing.assert_allclose(ring, plain, rtol=1e-5)
