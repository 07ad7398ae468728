# SPDX-License-Identifier: Apache-2.0
"""Exact ring attention in JAX: the signature and the meaning of ejkernel's ``ring_attention``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _library, masks
from ._calls import TARGETS, all_varying
from ._library import LAYOUTS, Config
from ._message import Extras, set_up
from ._partition import over_explicit_axes
from ._ring import attend

__all__ = ["export_targets", "remat_names", "ring_attention"]

remat_names = ("ring_attention_out", "ring_attention_lse")
"""For ``jax.checkpoint_policies.save_only_these_names``: the ring then runs once, not twice."""

_DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2, "float64": 3}


def export_targets() -> list[Any]:
    """What ``jax.export.export(..., disabled_checks=export_targets())`` needs."""
    from jax import export

    return [export.DisabledSafetyCheck.custom_call(name) for name in TARGETS.values()]


def ring_attention(
    query: Any,
    key: Any,
    value: Any,
    q_segment_ids: Any = None,
    kv_segment_ids: Any = None,
    softmax_aux: Any = None,
    bias: Any = None,
    mask_builder: Callable[[int, int, int, int, int], Any] | None = None,
    sliding_window: int | tuple[int | None, int | None] | None = None,
    chunk_size: int | None = None,
    causal: bool = False,
    logits_soft_cap: float | None = None,
    softmax_scale: float | None = None,
    axis_name: Any = None,
    fwd_params: Any = None,
    bwd_params: Any = None,
    fused_backward: bool = False,
    *,
    q_positions: Any = None,
    kv_positions: Any = None,
    layout: str = "contiguous",
    return_lse: bool = False,
    deterministic: bool = False,
) -> Any:
    """Exact attention of this device's queries to the keys of all devices of a ring.

    Liu, Zaharia & Abbeel 2023, arXiv 2310.01889. Call it inside ``jax.shard_map`` that is manual
    over ``axis_name``, or without a ring, ``axis_name=None``. Batch and heads may be sharded over
    other axes, and stay so. Differentiable once, in reverse mode, in query, key, value and
    softmax_aux. ``docs/contract.md`` defines every argument.

    Args:
      query: ``[B, Sq, H, D]``, float32, bfloat16 or float16: this device's shard.
      key: ``[B, Sk, Hkv, D]``; ``H % Hkv == 0``, query head h reads kv head ``h // (H // Hkv)``.
      value: ``[B, Sk, Hkv, Dv]``.
      q_segment_ids: ``[B, Sq]`` integers; visible only where equal, negative is padding.
      kv_segment_ids: ``[B, Sk]``; one of the two serves both if ``Sq == Sk``.
      softmax_aux: sinks, ``[H]``, ``[S]`` or ``[H, S]`` float logits that only join the denominator.
      bias: refused, ``NotImplementedError``.
      mask_builder: ``(q_len, kv_len, num_heads, head_idx, num_reps) -> mask`` with global lengths;
        replaces causal, sliding_window and chunk_size.
      sliding_window: w or (left, right): keys ``q - left <= k <= q + right``, ends inclusive; a
        ``None`` side is unbounded.
      chunk_size: keys of the query's chunk of that many positions that are not after it.
      causal: keys that are not after the query, on global positions.
      logits_soft_cap: ``cap * tanh(x / cap)``.
      softmax_scale: default ``D ** -0.5``.
      axis_name: the mesh axis (or tuple of axes) that is the ring.
      fwd_params: an object with ``q_blocksize`` and ``kv_blocksize``: hints.
      bwd_params: the same for the backward; default fwd_params.
      fused_backward: a hint.
      q_positions: ``[Sq]`` int32 or int64, the global position of each row; needs kv_positions.
      kv_positions: ``[Sk]``.
      layout: "contiguous", "zigzag" or "striped": which rows a device holds (``ringattn.order``).
      return_lse: also return lse, ``[B, H, Sq]`` float32, differentiable. Without it a call that is
        not differentiated is an inference: CPUs with bfloat16 dot products do it faster, by rounding
        weights once.
      deterministic: the CPU always is.

    Returns:
      ``[B, Sq, H, Dv]`` in query's dtype, or ``(out, lse)``.

    Raises:
      TypeError: a wrong dtype, type or number of dimensions.
      ValueError: a wrong value, shapes that disagree, or an axis name that is not bound.
      NotImplementedError: bias, float64, a head_dim above 512, a second derivative.
      jax.errors.JaxRuntimeError: when it runs and there is no memory; on all ranks of a ring.
    """
    if bias is not None:
        raise NotImplementedError(
            "bias: not supported; causal, sliding_window, chunk_size, mask_builder and segment ids "
            "say who sees whom"
        )
    world = _ring_size(axis_name)
    query, key, value, out_dtype = _floats(query, key, value)
    batch, q_rows, heads, head_dim = query.shape
    kv_batch, k_rows, kv_heads, key_dim = key.shape
    if value.shape[:3] != key.shape[:3] or kv_batch != batch or key_dim != head_dim:
        raise ValueError(
            "query, key, value: expected [B, Sq, H, D], [B, Sk, Hkv, D], [B, Sk, Hkv, Dv], got "
            f"{query.shape}, {key.shape}, {value.shape}"
        )
    q_ids, kv_ids = _segment_ids(q_segment_ids, kv_segment_ids, batch, q_rows, k_rows)
    q_pos, kv_pos, wide = _positions(q_positions, kv_positions, q_rows, k_rows)
    sinks = _sinks(softmax_aux, heads)
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    flags = (
        _library.SEGMENT_IDS * (q_ids is not None)
        | _library.POSITIONS * (q_pos is not None)
        | _library.POSITIONS64 * wide
        | _library.SINKS * (sinks is not None)
        | (_library.DLSE | _library.LSE) * _flag("return_lse", return_lse)
        | _library.FUSED_BACKWARD * _flag("fused_backward", fused_backward)
        | _library.DETERMINISTIC * _flag("deterministic", deterministic)
    )
    forward_tiles = _tiles("fwd_params", fwd_params, (0, 0))
    config = Config(
        query_seq=q_rows * world,
        key_seq=k_rows * world,
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=value.shape[3],
        dtype=_DTYPES[query.dtype.name],
        world=world,
        layout=LAYOUTS.index(layout),
        softmax_scale=_number("softmax_scale", softmax_scale),
        logits_soft_cap=_number("logits_soft_cap", logits_soft_cap),
        fwd_q_blocksize=forward_tiles[0],
        fwd_kv_blocksize=forward_tiles[1],
        **dict(
            zip(
                ("bwd_q_blocksize", "bwd_kv_blocksize"),
                _tiles("bwd_params", bwd_params, forward_tiles),
            )
        ),
        flags=flags,
    )
    config, mask = _mask(config, mask_builder, sliding_window, chunk_size, causal)
    static_batch = batch if isinstance(batch, int) else 1
    setup = set_up(config, static_batch, mask, axis_name)
    if static_batch == 0 or q_rows == 0:
        return _empty(query, key, value, sinks, out_dtype, return_lse)
    rank = jnp.int32(0) if world == 1 else lax.axis_index(axis_name)
    bitmap = None if mask is None or mask.bitmap is None else jnp.asarray(mask.bitmap)
    # Replicated operands become varying here, outside the rule: the transpose of that is the one
    # sum over the ring that their gradients need.
    (query, key, value, sinks, *extras) = all_varying(
        [query, key, value, sinks, rank, q_ids, kv_ids, q_pos, kv_pos, bitmap]
    )
    out, lse = over_explicit_axes(
        functools.partial(attend, setup), query, key, value, sinks, Extras(*extras)
    )
    out = out.astype(out_dtype)
    return (out, lse) if return_lse else out


def _ring_size(axis_name: Any) -> int:
    if axis_name is None:
        return 1
    if not (isinstance(axis_name, str) or (isinstance(axis_name, tuple) and axis_name)):
        raise TypeError(
            "axis_name: expected the name of a mesh axis, a tuple of names or None, got "
            f"{axis_name!r}"
        )
    try:
        return int(lax.axis_size(axis_name))
    except NameError:
        raise ValueError(
            f"axis_name: no mesh axis {axis_name!r} is bound here; call ring_attention inside "
            "jax.shard_map over a mesh with that axis, or leave axis_name out on one device"
        ) from None


def _floats(query: Any, key: Any, value: Any) -> tuple:
    arrays = []
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not hasattr(x, "dtype") or not hasattr(x, "ndim"):
            raise TypeError(f"{name}: expected an array, got {type(x).__name__}")
        if x.ndim != 4:
            raise TypeError(
                f"{name}: expected 4 dimensions [batch, seq, heads, head_dim], got {x.ndim}"
            )
        if np.dtype(x.dtype).name not in _DTYPES:
            raise TypeError(f"{name}: expected float32, bfloat16 or float16, got {x.dtype}")
        if np.dtype(x.dtype).name == "float64":
            raise NotImplementedError(
                f"{name}: float64 is not supported; use float32, bfloat16 or float16"
            )
        arrays.append(x)
    dtype = functools.reduce(jnp.promote_types, [x.dtype for x in arrays])
    # A conversion also makes weak types strong.
    return *[lax.convert_element_type(x, np.dtype(dtype)) for x in arrays], arrays[0].dtype


def _integers(name: str, x: Any, shape: tuple, kinds: tuple[str, ...]) -> jax.Array:
    if not hasattr(x, "dtype"):
        raise TypeError(f"{name}: expected an integer array, got {type(x).__name__}")
    if np.dtype(x.dtype).name not in kinds:
        raise TypeError(f"{name}: expected {' or '.join(kinds)}, got {x.dtype}")
    if x.ndim != len(shape):
        raise TypeError(f"{name}: expected {len(shape)} dimensions, got {x.ndim}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
    return jnp.asarray(x)


def _segment_ids(q_ids: Any, kv_ids: Any, batch: int, q_rows: int, k_rows: int) -> tuple:
    if q_ids is None and kv_ids is None:
        return None, None
    if (q_ids is None or kv_ids is None) and q_rows != k_rows:
        missing = "kv_segment_ids" if kv_ids is None else "q_segment_ids"
        raise ValueError(
            f"{missing}: expected ids for both sides, as query length {q_rows} and key length "
            f"{k_rows} differ, got None"
        )
    kinds = ("int8", "int16", "int32", "int64")

    def ids(name: str, x: Any, rows: int) -> jax.Array:
        if np.dtype(getattr(x, "dtype", np.int32)).name == "int64":  # outside int32: padding
            x = jnp.where((x >= -1) & (x < 2**31), x, -1)
            return lax.convert_element_type(_integers(name, x, (batch, rows), kinds), np.int32)
        return lax.convert_element_type(_integers(name, x, (batch, rows), kinds), np.int32)

    q = None if q_ids is None else ids("q_segment_ids", q_ids, q_rows)
    kv = None if kv_ids is None else ids("kv_segment_ids", kv_ids, k_rows)
    return (kv if q is None else q), (q if kv is None else kv)


def _positions(q_pos: Any, kv_pos: Any, q_rows: int, k_rows: int) -> tuple:
    if q_pos is None and kv_pos is None:
        return None, None, False
    if q_pos is None or kv_pos is None:
        name = "q_positions" if q_pos is None else "kv_positions"
        raise ValueError(f"{name}: expected positions of both sides or of neither, got None")
    q = _integers("q_positions", q_pos, (q_rows,), ("int32", "int64"))
    kv = _integers("kv_positions", kv_pos, (k_rows,), ("int32", "int64"))
    wide = np.dtype(q.dtype).name == "int64" or np.dtype(kv.dtype).name == "int64"
    dtype = np.int64 if wide else np.int32
    return lax.convert_element_type(q, dtype), lax.convert_element_type(kv, dtype), wide


def _sinks(sinks: Any, heads: int) -> jax.Array | None:
    if sinks is None:
        return None
    if not hasattr(sinks, "dtype") or not jnp.issubdtype(sinks.dtype, jnp.floating):
        got = getattr(sinks, "dtype", type(sinks).__name__)
        raise TypeError(f"softmax_aux: expected a float array, got {got}")
    if sinks.ndim not in (1, 2):
        raise TypeError(f"softmax_aux: expected 1 or 2 dimensions, got {sinks.ndim}")
    if 0 in sinks.shape or (sinks.ndim == 2 and sinks.shape[0] != heads):
        raise ValueError(
            f"softmax_aux: expected shape [{heads}], [S] or [{heads}, S], got {sinks.shape}"
        )
    return lax.convert_element_type(sinks, np.float32)


def _flag(name: str, x: Any) -> bool:
    if not isinstance(x, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {x!r}")
    return bool(x)


def _static(name: str, x: Any, kinds: tuple, what: str) -> Any:
    if isinstance(x, (bool, np.bool_)) or not isinstance(x, kinds):
        raise TypeError(f"{name}: expected {what}, known when the program is traced, got {x!r}")
    return x


def _number(name: str, x: Any) -> float:
    if x is None:
        return _library.NONE
    number = float(_static(name, x, (int, float, np.integer, np.floating), "a number"))
    positive = name != "logits_soft_cap" or number > 0
    if not (np.isfinite(number) and positive):
        raise ValueError(
            f"{name}: expected a finite number{'' if name != 'logits_soft_cap' else ' > 0'}, "
            f"got {number}"
        )
    return number


def _tiles(name: str, params: Any, default: tuple[int, int]) -> tuple[int, int]:
    if params is None:
        return default
    sizes = []
    for field in ("q_blocksize", "kv_blocksize"):
        if not hasattr(params, field):
            raise TypeError(
                f"{name}: expected an object with q_blocksize and kv_blocksize, got {params!r}"
            )
        size = getattr(params, field)
        size = 0 if size is None else _static(f"{name}.{field}", size, (int, np.integer), "an int")
        if getattr(params, field) is not None and size <= 0:
            raise ValueError(f"{name}.{field}: expected > 0, got {size}")
        sizes.append(int(size))
    return sizes[0], sizes[1]


def _window(window: Any) -> tuple[int, int]:
    sides = window if isinstance(window, (tuple, list)) else (window, window)
    if len(sides) != 2:
        raise ValueError(f"sliding_window: expected w or (left, right), got {window!r}")
    bounds = []
    for side in sides:
        if side is None:
            bounds.append(_library.UNBOUNDED)
            continue
        bounds.append(int(_static("sliding_window", side, (int, np.integer), "integers")))
        if bounds[-1] < 0:
            raise ValueError(f"sliding_window: expected sides >= 0 or None, got {side}")
    return bounds[0], bounds[1]


def _mask(config: Config, builder: Any, window: Any, chunk: Any, causal: Any) -> tuple:
    causal = _flag("causal", causal)
    if builder is not None:
        given = [
            name
            for name, there in (
                ("causal", causal),
                ("sliding_window", window is not None),
                ("chunk_size", chunk is not None),
            )
            if there
        ]
        if given:
            raise ValueError(
                f"mask_builder: expected no {' and no '.join(given)} with it, as its masks replace "
                "them"
            )
        if config.kv_heads < 1 or config.query_heads % config.kv_heads:
            return config, None  # refused by the plan
        mask = masks.build(
            builder, config.query_seq, config.key_seq, config.query_heads, config.kv_heads
        )
        bitmap = _library.BITMAP if mask.bitmap is not None else 0
        config = config._replace(
            left=mask.left, right=mask.right, chunk=mask.chunk, flags=config.flags | bitmap
        )
        return config, mask
    left, right = (
        (_library.UNBOUNDED, _library.UNBOUNDED) if window is None else _window(window)
    )
    if chunk is not None:
        chunk = int(_static("chunk_size", chunk, (int, np.integer), "an int"))
        if chunk <= 0:
            raise ValueError(f"chunk_size: expected > 0, got {chunk}")
    if causal or chunk is not None:
        right = 0
    return config._replace(left=left, right=right, chunk=chunk or 0), None


def _empty(query, key, value, sinks, dtype, return_lse):  # noqa: ANN001, ANN202
    """No rows: nothing to compute, and every gradient is zero."""
    out = jnp.zeros((*query.shape[:3], value.shape[3]), dtype)
    lse = jnp.zeros((query.shape[0], query.shape[2], query.shape[1]), jnp.float32)
    out, lse, *_ = all_varying([out, lse, query, key, value, sinks])
    return (out, lse) if return_lse else out
