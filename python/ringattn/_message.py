# SPDX-License-Identifier: Apache-2.0
"""What travels round the ring: K, V, segment ids and positions of each batch row in one array, and a
gate that ties it to what must have ended before."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _library
from ._calls import all_varying
from ._library import Config, Step


@dataclass(frozen=True)
class Setup:
    """All that is static. Equal ones do not trace again."""

    config: Config
    mask: Any  # a CompiledMask or None
    axis_name: Any
    steps: tuple[tuple[Step, ...], ...]  # of every rank
    forward_state: int  # floats per batch row
    backward_state: int
    word: Any  # the dtype of messages
    ids_at: int
    positions_at: int
    gate_at: int
    words: int
    heads_alike: bool  # to the mask


@functools.lru_cache(maxsize=256)
def set_up(config: Config, batch: int, mask: Any, axis_name: Any) -> Setup:
    """Checks everything that is known before data."""
    handle = None if mask is None else mask.handle
    sizes = _library.plan(config, batch, handle)
    steps = _library.route(config, handle) if config.key_seq and config.query_seq else None
    if steps is None:  # nothing travels
        own = _library.Step(0, 0, True, False, False, False)
        steps = tuple((own._replace(owner=r),) for r in range(config.world))
    return Setup(
        config=config,
        mask=mask,
        axis_name=axis_name,
        steps=steps,
        forward_state=sizes.forward_state,
        backward_state=sizes.backward_state,
        word=np.dtype(np.float32 if sizes.word_bytes == 4 else np.uint16),
        ids_at=sizes.ids_at,
        positions_at=sizes.positions_at,
        gate_at=sizes.gate_at,
        words=sizes.words,
        heads_alike=mask is None or mask.heads_alike,
    )


class Extras(NamedTuple):
    """Operands without a gradient."""

    rank: jax.Array
    q_segment_ids: jax.Array | None
    kv_segment_ids: jax.Array | None
    q_positions: jax.Array | None
    kv_positions: jax.Array | None
    mask: jax.Array | None


def _words(setup: Setup, x: jax.Array, batch: int) -> jax.Array:
    """The bits of x as words of a message, [B, words]: float32, or uint16, as XLA sends 16-bit
    floats as float32."""
    return lax.bitcast_convert_type(x, setup.word).reshape(batch, -1)


def pack(
    setup: Setup, key: jax.Array, value: jax.Array, extras: Extras, gate: jax.Array
) -> jax.Array:
    """One message: K, V, segment ids and positions of each batch row, and a gate."""
    batch = key.shape[0]
    parts = [_words(setup, key, batch), _words(setup, value, batch)]

    def pad_to(at: int) -> None:
        missing = at - sum(p.shape[1] for p in parts)
        if missing:
            parts.append(jnp.zeros_like(parts[0], shape=(batch, missing)))

    def append(at: int, row: jax.Array) -> None:
        pad_to(at)
        parts.append(jnp.broadcast_to(row, (batch, row.shape[1])))

    if extras.kv_segment_ids is not None:
        append(setup.ids_at, _words(setup, extras.kv_segment_ids, batch))
    if extras.kv_positions is not None:
        append(setup.positions_at, _words(setup, extras.kv_positions, 1))
    pad_to(setup.gate_at)
    return _joined(gate, *parts)


# A gate is one number for the whole batch, but under vmap with a `spmd_axis_name` it varies over that
# axis too: only a rule for vmap sees the axes of both a gate and what is batched.


def _joined(gate: jax.Array, *parts: jax.Array) -> jax.Array:
    """The parts of each row, one behind the other, and the gate behind them."""

    @jax.custom_batching.custom_vmap
    def call(gate: jax.Array, *parts: jax.Array) -> jax.Array:
        word = lax.bitcast_convert_type(gate, parts[0].dtype).reshape(-1)
        words = jnp.broadcast_to(word, (*parts[0].shape[:-1], word.size))
        return jnp.concatenate(all_varying([*parts, words]), axis=-1)

    @call.def_vmap
    def rule(size: int, batched: list, gate: jax.Array, *parts: jax.Array) -> tuple:
        parts = [x if b else jnp.broadcast_to(x, (size, *x.shape)) for x, b in zip(parts, batched[1:])]
        return _joined(gate, *parts), True

    return call(gate, *parts)


def tie(message: jax.Array, gate: jax.Array, gate_at: int) -> jax.Array:
    """The message, which now cannot be sent on before `gate` is there; or sums, as many numbers, whose
    last ones are nobody's either.

    Untied, XLA would start every transfer at once and keep every shard.
    """

    @jax.custom_batching.custom_vmap
    def call(message: jax.Array, gate: jax.Array) -> jax.Array:
        *lead, rows, _ = message.shape
        word = lax.bitcast_convert_type(gate, message.dtype).reshape(*[1] * len(lead), 1, -1)
        message, word = all_varying([message, word])
        return lax.dynamic_update_slice(message, word, (*[0] * len(lead), rows - 1, gate_at))

    @call.def_vmap
    def rule(_size: int, _batched: list, message: jax.Array, gate: jax.Array) -> tuple:
        return tie(message, gate, gate_at), True

    return call(message, gate)


@jax.custom_batching.custom_vmap
def gate_after(x: jax.Array) -> jax.Array:
    """A gate that is there when x is: a number of which nobody knows anything."""
    return lax.bitcast_convert_type(
        x[(slice(0, 1),) * x.ndim].reshape(()).astype(jnp.float32), jnp.int32
    )


@gate_after.def_vmap
def _gate_after_any(_size: int, _batched: list, x: jax.Array) -> tuple:
    return gate_after(x[0]), False  # one for the whole batch: the message may have none
