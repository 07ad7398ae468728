# SPDX-License-Identifier: Apache-2.0
"""The ring loop (Liu, Zaharia & Abbeel 2023, arXiv 2310.01889, section 3), unrolled over ppermute.

It mirrors ``run_ring`` in ``src/ring.h``: the same names in the same order. Which hops there are and
who sends is the plan's; which block is at hand is known only at run time and the handler's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ._calls import all_varying, hop, integer, to_varying, varying
from ._library import DLSE, Config, Step


@dataclass(frozen=True)
class Setup:
    """All that is static. Equal ones do not trace again."""

    config: Config
    axis_name: Any
    steps: tuple[tuple[Step, ...], ...]  # of every rank
    forward_state: int  # floats per batch row
    backward_state: int
    word_bytes: int
    ids_at: int
    positions_at: int
    words: int
    sinks_rank: int
    return_lse: bool


class Extras(NamedTuple):
    """Operands without a gradient."""

    rank: jax.Array
    q_segment_ids: jax.Array | None
    kv_segment_ids: jax.Array | None
    q_positions: jax.Array | None
    kv_positions: jax.Array | None
    bitmap: jax.Array | None


def _words(setup: Setup, x: jax.Array, batch: int) -> jax.Array:
    """The bits of x as unsigned words, [B, words]: 16-bit floats would be sent as float32."""
    word = jnp.uint16 if setup.word_bytes == 2 else jnp.uint32
    return lax.bitcast_convert_type(x, word).reshape(batch, -1)


def _pack(setup: Setup, key: jax.Array, value: jax.Array, extras: Extras) -> jax.Array:
    """One message: K, V, segment ids and positions of each batch row."""
    batch = key.shape[0]
    parts = [_words(setup, key, batch), _words(setup, value, batch)]

    def pad_to(at: int) -> None:
        missing = at - sum(p.shape[1] for p in parts)
        if missing:
            parts.append(jnp.zeros_like(parts[0], shape=(batch, missing)))

    if extras.kv_segment_ids is not None:
        pad_to(setup.ids_at)
        parts.append(_words(setup, extras.kv_segment_ids, batch))
    if extras.kv_positions is not None:
        pad_to(setup.positions_at)
        row = _words(setup, extras.kv_positions, 1)
        parts.append(jnp.broadcast_to(row, (batch, row.shape[1])))
    pad_to(setup.words)
    return jnp.concatenate(all_varying(parts), axis=1)


def _tie(message: jax.Array, gate: jax.Array | None) -> jax.Array:
    """The message, which now cannot be sent on before the call that gave `gate`, a zero, is done.

    Untied, XLA would start every transfer at once and keep every shard.
    """
    if gate is None:
        return message
    first = message[:1, :1] + gate.astype(message.dtype)
    return lax.dynamic_update_slice(message, first, (0, 0))


def _mine(table: list[bool], extras: Extras) -> jax.Array:
    """This rank's entry of a static table."""
    return to_varying(jnp.asarray(np.array(table)), varying(extras.rank))[extras.rank]


class _TravellingBlocks:
    """Keys and values on their way round the ring, both ways from this rank's own block."""

    def __init__(self, setup: Setup, key: jax.Array, value: jax.Array, extras: Extras) -> None:
        self._setup = setup
        self._own = _pack(setup, key, value, extras) if len(setup.steps[0]) > 1 else None
        self.here: jax.Array | None = None  # None: this rank's own, where it lies
        self._coming: jax.Array | None = None

    def depart(self, s: int, gate: jax.Array | None) -> None:
        """Starts the transfer that brings the block of step s here."""
        offset = self._setup.steps[0][s].offset
        direction = 1 if offset > 0 else -1
        if self.here is not None:
            self.here = _tie(self.here, gate)
        from_home = offset == direction  # a new direction starts again from home
        source = _tie(self._own, gate) if from_home else self.here
        self._coming = _shift(
            self._setup, source, direction, [rank[s].sends for rank in self._setup.steps]
        )

    def arrive(self) -> None:
        self.here = self._coming


def _shift(setup: Setup, x: jax.Array, offset: int, sends: list[bool]) -> jax.Array:
    world = setup.config.world
    pairs = [(r, (r + offset) % world) for r in range(world) if sends[r]]
    return lax.ppermute(x, setup.axis_name, pairs)


class _TravellingSums:
    """dK and dV of travelling blocks. A block's sums start at its first stop away from home, grow
    from stop to stop behind the block, and go home from the last one."""

    def __init__(self, setup: Setup, extras: Extras) -> None:
        self._setup, self._extras = setup, extras
        self.own: jax.Array | None = None
        self._onward: jax.Array | None = None  # brings the sums for the next step

    def pass_on(self, s: int, part: jax.Array) -> None:
        """Adds what came from the previous stop to the part of step s, and sends it on, or home."""
        steps = self._setup.steps
        offset = steps[0][s].offset
        if offset == 0:
            self.own = part
            return
        direction = 1 if offset > 0 else -1
        if self._onward is not None:
            part = self._add(part, self._onward, [rank[s].receives for rank in steps])
        self._onward = None
        if s + 1 < len(steps[0]) and steps[0][s + 1].offset == offset + direction:
            self._onward = _shift(self._setup, part, direction, [r[s + 1].sends for r in steps])
        stops = [rank[s].stops for rank in steps]
        if any(stops):
            home = _shift(self._setup, part, -offset, stops)
            owners = {rank[s].owner for rank in steps if rank[s].stops}
            self.own = self._add(self.own, home, [r in owners for r in range(len(steps))])

    def _add(self, total: jax.Array, part: jax.Array, where: list[bool]) -> jax.Array:
        if all(where):
            return total + part
        return jnp.where(_mine(where, self._extras), total + part, total)


def _call(setup: Setup, kind: str, s: int, operands: list, results: list, **more: Any) -> tuple:
    operands = [x for x in operands if x is not None]
    return hop(
        kind,
        operands,
        results,
        config=setup.config.words(),
        sinks_rank=integer(setup.sinks_rank),
        offset=integer(setup.steps[0][s].offset),
        first=integer(s == 0),
        last=integer(s + 1 == len(setup.steps[0])),
        packed=integer(s > 0),
        **more,
    )


def _block(blocks: _TravellingBlocks, key: jax.Array, value: jax.Array, extras: Extras) -> list:
    """The operands that every hop begins with, after the query."""
    here = (
        [key, value, extras.kv_segment_ids, extras.kv_positions]
        if blocks.here is None
        else [blocks.here]
    )
    return [*here, extras.rank, extras.q_segment_ids, extras.q_positions, extras.bitmap]


def _forward(setup: Setup, query, key, value, sinks, extras: Extras) -> tuple:  # noqa: ANN001
    batch, rows, heads, _ = query.shape
    blocks = _TravellingBlocks(setup, key, value, extras)
    state, gate = None, None
    count = len(setup.steps[0])
    for s in range(count):
        more = s + 1 < count
        if more:
            blocks.depart(s + 1, gate)  # the next block is on its way ...
        operands = [query, *_block(blocks, key, value, extras)]  # ... while this one is used
        if more:
            operands.append(state)
            shapes = [((batch, setup.forward_state), jnp.float32), ((), jnp.int32)]
            given = sum(x is not None for x in operands)
            aliases = {} if state is None else {given - 1: 0}
            state, gate = _call(setup, "forward", s, operands, shapes, aliases=aliases, gate=1)
            blocks.arrive()
        else:
            operands += [sinks, state]
            shapes = [
                ((batch, rows, heads, value.shape[3]), query.dtype),
                ((batch, heads, rows), jnp.float32),
            ]
            out, lse = _call(setup, "forward", s, operands, shapes, aliases={}, gate=None)
    return out, lse


def _backward(setup: Setup, query, key, value, sinks, extras, out, lse, dout, dlse):  # noqa: ANN001, ANN202
    # Otherwise XLA takes the first transfer of the forward for this one, and keeps what it brought.
    key, value, dout = lax.optimization_barrier((key, value, dout))
    batch = query.shape[0]
    key_sums = key.shape[1] * key.shape[2] * key.shape[3]
    width = key_sums + value.shape[1] * value.shape[2] * value.shape[3]
    blocks = _TravellingBlocks(setup, key, value, extras)
    sums = _TravellingSums(setup, extras)
    state, gate, dsinks, dquery = None, None, None, None
    count = len(setup.steps[0])
    for s in range(count):
        first, more = s == 0, s + 1 < count
        if more:
            blocks.depart(s + 1, gate)
        operands = [query, *_block(blocks, key, value, extras), dout]
        operands += [out, lse, dlse, sinks] if first else [state]
        shapes = [((batch, width), jnp.float32)]
        shapes.append(((), jnp.int32) if more else (query.shape, query.dtype))
        if more or not first:
            shapes.append(((batch, setup.backward_state), jnp.float32))
        if first and sinks is not None:
            shapes.append((sinks.shape, jnp.float32))
        given = sum(x is not None for x in operands)
        part, other, *rest = _call(
            setup, "backward", s, operands, shapes,
            aliases={} if first else {given - 1: 2}, gate=1 if more else None,
        )  # fmt: skip
        gate, dquery = (other, None) if more else (None, other)
        if more or not first:
            state = rest.pop(0)
        if first and sinks is not None:
            dsinks = rest.pop(0)
        sums.pass_on(s, part)
        if more:
            blocks.arrive()
    flat = sums.own.reshape(-1)
    dkey = flat[: batch * key_sums].reshape(key.shape).astype(key.dtype)
    dvalue = flat[batch * key_sums :].reshape(value.shape).astype(value.dtype)
    return dquery, dkey, dvalue, None if dsinks is None else dsinks.astype(sinks.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(setup: Setup, query, key, value, sinks, extras: Extras):  # noqa: ANN001, ANN201
    """out, or (out, lse); differentiable once, in query, key, value and sinks."""
    return _attend_forward(setup, query, key, value, sinks, extras)[0]


def _attend_forward(setup, query, key, value, sinks, extras):  # noqa: ANN001, ANN202
    out, lse = _forward(setup, query, key, value, sinks, extras)
    out = checkpoint_name(out, "ring_attention_out")
    lse = checkpoint_name(lse, "ring_attention_lse")
    result = (out, lse) if setup.return_lse else out
    return result, (query, key, value, sinks, extras, out, lse)


def _attend_backward(setup, residuals, cotangents):  # noqa: ANN001, ANN202
    query, key, value, sinks, extras, out, lse = residuals
    dout, dlse = cotangents if setup.config.flags & DLSE else (cotangents, None)
    grads = _backward(setup, query, key, value, sinks, extras, out, lse, dout, dlse)
    return *grads, Extras(*[None] * len(Extras._fields))


attend.defvjp(_attend_forward, _attend_backward)
