# SPDX-License-Identifier: Apache-2.0
"""Real input, and the example that trains."""

import json
import runpy
import struct

import jax
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

    def both(q, k, v, ids, dout):
        out, pull = jax.vjp(lambda *y: f(*y, ids), q, k, v)
        return out, *pull(dout)

    results = jax.jit(both)(x["query"], x["key"], x["value"], x["q_segment_ids"], x["dout"])
    for name, result in zip(("out", "dquery", "dkey", "dvalue"), results):
        truth = expected[name].astype(np.float64)
        mine = np.asarray(result, np.float64)[:, :, expected["heads"]]
        # The floor of the error model in bfloat16: one eps of the largest value.
        assert np.abs(mine - truth).max() <= 2**-7 * np.abs(truth).max(), name


def test_the_training_example_agrees_with_plain_attention():
    example = runpy.run_path(str(ROOT / "examples/jax/train.py"))
    ring, plain = (example["train"](a) for a in example["attentions"]())
    assert all(b < a for a, b in zip(ring, ring[1:])), ring
    np.testing.assert_allclose(ring, plain, rtol=1e-5)
