# SPDX-License-Identifier: Apache-2.0
"""Eight CPU devices, and the oracle: what C++ says of cases, float64 and tolerances."""

import ctypes
import os
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)

ROOT = Path(__file__).parents[2]
DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.float64, np.int32, np.int64, np.bool_]
INPUTS = (
    "query", "key", "value", "dout", "dlse", "softmax_aux", "q_segment_ids", "kv_segment_ids",
    "q_positions", "kv_positions", "mask",
)  # fmt: skip
OPTIONS = (
    "causal", "window", "left", "right", "chunk", "cap", "scaled", "scale", "q_block", "kv_block",
    "fused", "backward", "dlse",
)  # fmt: skip

_path = os.environ.get("RINGATTN_ORACLE", ROOT / "build/dev/tests/libringattn_oracle.so")
_lib = ctypes.CDLL(str(_path))
_lib.oracle_row.restype = ctypes.c_char_p
_lib.oracle_make.restype = ctypes.c_void_p
_lib.oracle_make.argtypes = [ctypes.c_char_p, ctypes.c_int64]
for _name in ("oracle_verdict", "oracle_bits"):
    getattr(_lib, _name).restype = ctypes.c_char_p


def table() -> list[str]:
    """The conformance table of the core."""
    rows = []
    while (row := _lib.oracle_row(len(rows))) is not None:
        rows.append(row.decode())
    return rows


class Oracle:
    """One case: its data, and the verdict on results."""

    def __init__(self, text: str, unit: int) -> None:
        self._o = ctypes.c_void_p(_lib.oracle_make(text.encode(), unit))
        assert self._o, text
        numbers = (ctypes.c_double * len(OPTIONS))()
        _lib.oracle_options(self._o, numbers)
        self.options = dict(zip(OPTIONS, numbers))
        self.inputs = {name: self._input(name) for name in INPUTS}

    def _input(self, name: str):
        data, shape = ctypes.c_void_p(), (ctypes.c_int64 * 5)()
        dtype = _lib.oracle_input(self._o, name.encode(), ctypes.byref(data), shape)
        if dtype < 0:
            return None
        dims = tuple(shape[1 : 1 + shape[0]])
        size = int(np.prod(dims)) * np.dtype(DTYPES[dtype]).itemsize
        raw = ctypes.string_at(data, size) if size else b""
        return np.frombuffer(raw, DTYPES[dtype]).reshape(dims)

    def judge(self, results: dict, gpu: bool = False) -> str:
        for name, x in results.items():
            x = np.ascontiguousarray(x)
            _lib.oracle_result(self._o, name.encode(), x.ctypes.data_as(ctypes.c_void_p))
        return _lib.oracle_verdict(self._o, int(gpu)).decode()

    def different_bits(self, ring: int, layout: int) -> str:
        return _lib.oracle_bits(self._o, ring, layout).decode()

    def __del__(self) -> None:
        if getattr(self, "_o", None):
            _lib.oracle_free(self._o)


@pytest.fixture
def mesh():
    """mesh(n, ...): a mesh of automatic axes over the first devices."""

    def make(names=("sp",), shape=(8,)):
        n = int(np.prod(shape))
        return jax.sharding.Mesh(np.array(jax.devices()[:n]).reshape(shape), names)

    return make


def pytest_collection_modifyitems(config, items):
    """RINGATTN_TEST_SMALL: of the two long lists of cases a few, for the oldest JAX."""
    if os.environ.get("RINGATTN_TEST_SMALL") != "1":
        return
    long = {"test_conformance.py": 9, "test_reference_cases.py": 7}
    seen = dict.fromkeys(long, 0)
    left_out = []
    for item in items:
        name = item.path.name
        if name in long:
            seen[name] += 1
            if seen[name] % long[name]:
                left_out.append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
