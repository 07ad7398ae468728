# SPDX-License-Identifier: Apache-2.0
"""Masks from outside, by duck typing: anything with ``.shape`` and ``mask[rows, keys]``.

The classes of splash attention (``CausalMask``, ``LocalMask``, ``ChunkedCausalMask``, ``FullMask``,
``LogicalAnd``, ``LogicalOr``, ``MultiHeadMask``) are recognised by name and fields and become
intervals; of every other mask tiles are asked, never all of it at once.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ._library import UNBOUNDED, Bitmap, Fill, call, library

_BAND = 4096  # keys asked of a mask at once, times 64 rows
_CACHE_SIZE = 64


class CompiledMask:
    """A mask for given lengths: an interval, and a bitmap if that does not say it all."""

    def __init__(self, mask: _Mask, heads: int, query_seq: int, key_seq: int) -> None:
        self._handle = ctypes.c_void_p()
        sizes = [ctypes.c_int64(n) for n in (heads, query_seq, key_seq)]
        try:
            call("compile", mask.handle, *sizes, ctypes.byref(self._handle))
        except ValueError as error:
            raise mask.failure or error from None
        interval = (ctypes.c_int64 * 3)()
        library().ringattn_compiled_interval(self._handle, interval)
        self.left, self.right, self.chunk = interval
        bitmap = Bitmap()
        count = library().ringattn_compiled_bitmap(self._handle, ctypes.byref(bitmap))
        words = np.empty(count, np.uint32)
        if count:
            library().ringattn_compiled_copy(self._handle, words.ctypes.data)
        self.bitmap: np.ndarray | None = words if count else None
        self.bitmap_numbers = bitmap.words()
        planes = words[2 * 64 * bitmap.mixed :][: bitmap.heads]  # equal heads have equal ones
        self.heads_alike = len(np.unique(planes)) <= 1
        self._key = (self.left, self.right, self.chunk, words.tobytes())

    @property
    def handle(self) -> ctypes.c_void_p:
        return self._handle

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CompiledMask) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __del__(self) -> None:
        if self._handle:
            library().ringattn_compiled_free(self._handle)


class _Mask:
    """A C mask while it is built. ``keep`` holds what its callbacks need."""

    def __init__(self, name: str, *args: Any, keep: tuple = ()) -> None:
        self.handle = ctypes.c_void_p()
        self.keep = keep
        call(name, *args, ctypes.byref(self.handle))

    @property
    def failure(self) -> BaseException | None:
        """What a mask's own code raised."""
        return next((k.failure for k in self.keep if getattr(k, "failure", None)), None)

    def __del__(self) -> None:
        if self.handle:
            library().ringattn_mask_free(self.handle)


class _Tiles:
    """Asks a mask for bands of rows and hands out their tiles."""

    def __init__(self, mask: Any) -> None:
        self.mask = mask
        self.failure: BaseException | None = None
        self._asked: tuple | None = None
        self._band = np.empty((0, 0), np.uint8)
        self.fill = Fill(self._fill)

    def _fill(self, _context, _head, row, row_end, key, key_end, visible) -> int:  # noqa: ANN001
        try:
            begin = key // _BAND * _BAND
            asked = (row, row_end, begin)
            if asked != self._asked:
                end = min(begin + _BAND, self.mask.shape[-1])
                band = np.asarray(self.mask[slice(row, row_end), slice(begin, end)])
                if band.shape != (row_end - row, end - begin):
                    raise ValueError(
                        f"mask_builder: expected mask[{row}:{row_end}, {begin}:{end}] of shape "
                        f"{(row_end - row, end - begin)}, got {band.shape}"
                    )
                self._band, self._asked = band.astype(bool).view(np.uint8), asked
            tile = np.ascontiguousarray(self._band[:, key - begin : key_end - begin])
            ctypes.memmove(visible, tile.ctypes.data, tile.size)
            return 0
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            self.failure = error
            return 1


def _interval_of(mask: Any) -> tuple[int, int, int] | None:
    """left, right and chunk of a mask whose class is known."""
    name = type(mask).__name__
    offset = getattr(mask, "offset", 0)
    if name == "FullMask":
        return UNBOUNDED, UNBOUNDED, 0
    if name == "CausalMask":
        return UNBOUNDED, offset, 0
    if name == "LocalMask" and hasattr(mask, "window_size"):
        left, right = mask.window_size
        return (
            UNBOUNDED if left is None else left - offset,
            UNBOUNDED if right is None else right + offset,
            0,
        )
    if name == "ChunkedCausalMask" and hasattr(mask, "chunk_size"):
        return UNBOUNDED, 0, mask.chunk_size
    return None


def _agrees(mask: Any, interval: tuple[int, int, int]) -> bool:
    """Does a known class say what its name says? Asked on tiles along the diagonal and far off."""
    left, right, chunk = interval
    rows, keys = mask.shape[-2:]
    for row in {0, rows // 3, max(rows - 40, 0)}:
        for key in {0, min(row, max(keys - 40, 0)), max(keys - 40, 0)}:
            q = np.arange(row, min(row + 40, rows))[:, None]
            k = np.arange(key, min(key + 40, keys))[None, :]
            expected = np.ones((q.size, k.size), bool)
            if left != UNBOUNDED:
                expected &= k >= q - left
            if right != UNBOUNDED:
                expected &= k <= q + right
            if chunk:
                expected &= q // chunk == k // chunk
            tile = np.asarray(mask[slice(row, row + q.size), slice(key, key + k.size)])
            if not np.array_equal(tile.astype(bool), expected):
                return False
    return True


def _convert(mask: Any, query_seq: int, key_seq: int) -> _Mask:
    shape = tuple(getattr(mask, "shape", ()))
    if shape[-2:] != (query_seq, key_seq) or not hasattr(mask, "__getitem__"):
        raise ValueError(
            f"mask_builder: expected a mask of shape {(query_seq, key_seq)} (global lengths), got "
            f"{type(mask).__name__} of shape {shape or None}"
        )
    if len(shape) != 2:
        raise ValueError(f"mask_builder: expected a mask of one head, got shape {shape}")
    interval = _interval_of(mask)
    if interval is not None and _agrees(mask, interval):
        return _Mask("mask_interval", *[ctypes.c_int64(int(x)) for x in interval])
    if type(mask).__name__ in ("LogicalAnd", "LogicalOr") and hasattr(mask, "left"):
        a, b = (_convert(side, query_seq, key_seq) for side in (mask.left, mask.right))
        joined = "mask_and" if type(mask).__name__ == "LogicalAnd" else "mask_or"
        return _Mask(joined, a.handle, b.handle, keep=(*a.keep, *b.keep))
    tiles = _Tiles(mask)
    sizes = [ctypes.c_int64(n) for n in (1, query_seq, key_seq)]
    return _Mask("mask_lazy", *sizes, tiles.fill, None, keep=(tiles,))


_cache: dict[Any, CompiledMask] = {}


def build(builder: Any, query_seq: int, key_seq: int, heads: int, kv_heads: int) -> CompiledMask:
    """Calls a ``mask_builder`` once for each head and compiles what it gives, once per process."""
    if not callable(builder):
        raise TypeError(
            "mask_builder: expected a function (q_len, kv_len, num_heads, head_idx, num_reps) -> "
            f"Mask, got {type(builder).__name__}"
        )
    masks = []
    for head in range(heads):
        mask = builder(query_seq, key_seq, heads, head, heads // kv_heads)
        several = len(getattr(mask, "shape", ())) == 3
        masks.append(mask.masks[head] if several and hasattr(mask, "masks") else mask)
    try:
        key = (tuple(masks), query_seq, key_seq)
        if key in _cache:
            return _cache[key]
    except TypeError:  # not hashable: compiled again
        key = None
    compiled = _compile(masks, query_seq, key_seq)
    if key is not None:
        if len(_cache) >= _CACHE_SIZE:
            _cache.pop(next(iter(_cache)))
        _cache[key] = compiled
    return compiled


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    equal = a == b if not isinstance(a, np.ndarray) else np.array_equal(a, b)
    return isinstance(equal, (bool, np.bool_)) and bool(equal)


def _compile(masks: list, query_seq: int, key_seq: int) -> CompiledMask:
    if all(_same(m, masks[0]) for m in masks[1:]):
        return CompiledMask(_convert(masks[0], query_seq, key_seq), 1, query_seq, key_seq)
    parts = [_convert(m, query_seq, key_seq) for m in masks]
    handles = (ctypes.c_void_p * len(parts))(*[p.handle for p in parts])
    sizes = [ctypes.c_int64(n) for n in (len(parts), query_seq, key_seq)]
    keep = tuple(k for p in parts for k in p.keep)
    joined = _Mask("mask_per_head", handles, *sizes, keep=keep)
    return CompiledMask(joined, len(parts), query_seq, key_seq)


__all__ = ["CompiledMask", "build"]
