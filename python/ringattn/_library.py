# SPDX-License-Identifier: Apache-2.0
"""The shared object behind the C interface (``include/ringattn/ringattn.h``), through ctypes."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ABI = 6
LAYOUTS = ("contiguous", "zigzag", "striped")
UNBOUNDED = 2**63 - 1
NONE = float("nan")  # a float that is not given; one object, so that equal configs are equal

(
    SEGMENT_IDS, POSITIONS, POSITIONS64, SINKS, DLSE, BITMAP, FUSED_BACKWARD, DETERMINISTIC, LSE
) = (1 << bit for bit in range(9))  # fmt: skip


class Config(NamedTuple):
    """``ringattn_config``: an attention problem with its options, lengths global."""

    query_seq: int
    key_seq: int
    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: int
    world: int
    layout: int
    left: int = UNBOUNDED
    right: int = UNBOUNDED
    chunk: int = 0
    softmax_scale: float = NONE
    logits_soft_cap: float = NONE
    fwd_q_blocksize: int = 0
    fwd_kv_blocksize: int = 0
    bwd_q_blocksize: int = 0
    bwd_kv_blocksize: int = 0
    flags: int = 0

    def words(self) -> np.ndarray:
        """As handlers take it."""
        return np.frombuffer(bytes(_Config(*self)), np.int64)


_FLOATS = ("softmax_scale", "logits_soft_cap")


class _Config(ctypes.Structure):
    _fields_ = [
        (f, ctypes.c_double if f in _FLOATS else ctypes.c_int64) for f in Config._fields
    ]


class _Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int32), ("message", ctypes.c_char * 2044)]


class Bitmap(ctypes.Structure):
    """``ringattn_bitmap``: what is where in the words of a mask."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "heads", "query_seq", "key_seq", "block_rows", "block_cols", "blocks", "mixed",
        )
    ]  # fmt: skip

    def words(self) -> np.ndarray:
        """As handlers take it."""
        return np.frombuffer(bytes(self), np.int64)


class Sizes(ctypes.Structure):
    """``ringattn_sizes``: what must be known before there is data."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "query_rows", "key_rows", "forward_state", "backward_state",
            "word_bytes", "value_at", "ids_at", "positions_at", "gate_at", "words",
        )
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("offset", "owner", "live", "receives", "sends", "stops")
    ]


class Step(NamedTuple):
    """One step of one rank; the fields are those of ``Step`` in ``src/plan.h``."""

    offset: int
    owner: int
    live: bool
    receives: bool
    sends: bool
    stops: bool


Fill = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    ctypes.c_void_p,
    *[ctypes.c_int64] * 5,
    ctypes.POINTER(ctypes.c_uint8),
)

_ERRORS: dict[int, type[Exception]] = {
    1: ValueError,
    2: NotImplementedError,
    3: RuntimeError,
    4: RuntimeError,
}


@functools.cache
def library() -> ctypes.CDLL:
    """The shared object, loaded once."""
    path = Path(__file__).parent / "lib" / "libringattn_ffi.so"
    lib = ctypes.CDLL(str(path))
    if lib.ringattn_abi() != ABI:
        raise ImportError(
            f"ringattn: {path} has interface {lib.ringattn_abi()}, this package needs {ABI}; "
            "reinstall ringattn"
        )
    lib.ringattn_version.restype = ctypes.c_char_p
    lib.ringattn_positions.restype = ctypes.c_int64
    lib.ringattn_positions.argtypes = [ctypes.c_int64] * 4 + [ctypes.c_void_p, ctypes.c_int64]
    lib.ringattn_compiled_bitmap.restype = ctypes.c_int64
    for name in ("mask_free", "compiled_free"):
        getattr(lib, f"ringattn_{name}").argtypes = [ctypes.c_void_p]
    for name in ("compiled_bitmap", "compiled_copy", "compiled_interval"):
        getattr(lib, f"ringattn_{name}").argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return lib


def call(name: str, *args: Any) -> None:
    """Calls ``ringattn_<name>`` and raises what its code means, with its message."""
    error = _Error()
    if getattr(library(), f"ringattn_{name}")(*args, ctypes.byref(error)) != 0:
        raise _ERRORS[error.code](error.message.decode(errors="replace"))


def platforms() -> tuple[str, ...]:
    """The platforms of JAX that this build has kernels for: ``("cpu",)`` or ``("cpu", "cuda")``."""
    return ("cpu", "cuda") if library().ringattn_has_cuda() else ("cpu",)


def version() -> str:
    return library().ringattn_version().decode()


def plan(config: Config, batch: int, mask: ctypes.c_void_p | None) -> Sizes:
    """Checks everything that is known before data."""
    sizes = Sizes()
    call("plan", ctypes.byref(_Config(*config)), ctypes.c_int64(batch), mask, ctypes.byref(sizes))
    return sizes


def route(config: Config, mask: ctypes.c_void_p | None) -> tuple[tuple[Step, ...], ...]:
    """Every rank's steps."""
    world = config.world
    table = (_Step * (world * world))()
    count = ctypes.c_int64()
    call("route", ctypes.byref(_Config(*config)), ctypes.c_int64(1), mask, table,
         ctypes.byref(count))  # fmt: skip
    n = count.value
    steps = [
        Step(s.offset, s.owner, bool(s.live), bool(s.receives), bool(s.sends), bool(s.stops))
        for s in table[: world * n]
    ]
    return tuple(tuple(steps[rank * n : (rank + 1) * n]) for rank in range(world))


def positions(layout: str, length: int, world: int, rank: int) -> np.ndarray:
    """The global positions of the rows that ``rank`` of ``world`` holds, in order; int64."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    index = LAYOUTS.index(layout)
    count = library().ringattn_positions(index, length, world, rank, None, 0)
    if count < 0:
        raise ValueError(
            "positions: expected length >= 0, world >= 1 and 0 <= rank < world, got length "
            f"{length}, world {world}, rank {rank}"
        )
    out = np.empty(count, np.int64)
    library().ringattn_positions(index, length, world, rank, out.ctypes.data, count)
    return out
