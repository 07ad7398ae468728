# SPDX-License-Identifier: Apache-2.0
"""The ring loop (Liu, Zaharia & Abbeel 2023, arXiv 2310.01889, section 3), unrolled over ppermute.

It mirrors ``run_ring`` in ``src/ring.h``: the same names in the same order. Which hops there are and
who sends is the plan's; which block is at hand is known only at run time and the handler's.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from . import _spread
from ._calls import accumulate, agree, hop
from ._library import DLSE, LSE
from ._message import Extras, Setup, gate_after, pack, tie


def _mine(table: list[bool], rank: jax.Array) -> jax.Array:
    """This rank's entry of a static table, without an array in the program (which a call that the
    compiler spreads may not have)."""
    edges = [r for r in range(len(table)) if table[r] != (r > 0 and table[r - 1])]
    return functools.reduce(jnp.logical_xor, [rank >= r for r in edges], rank < 0)


class _TravellingBlocks:
    """Keys and values on their way round the ring, both ways from this rank's own block."""

    def __init__(self, setup: Setup, key: jax.Array, value: jax.Array, extras: Extras) -> None:
        self._setup, self._own = setup, (key, value, extras)
        self.here: jax.Array | None = None  # None: this rank's own, where it lies
        self._coming: jax.Array | None = None

    def depart(self, s: int, gate: jax.Array) -> None:
        """Starts the transfer that brings the block of step s here, not before `gate`."""
        offset = self._setup.steps[0][s].offset
        direction = 1 if offset > 0 else -1
        if self.here is not None:
            self.here = tie(self.here, gate, self._setup.gate_at)
        source = self.here
        if offset == direction:  # from home; packed again if the ring also turns the other way
            source = pack(self._setup, *self._own, gate)
        self._coming = _shift(
            self._setup, source, direction, [rank[s].sends for rank in self._setup.steps]
        )

    def arrive(self) -> None:
        self.here = self._coming

    def stay(self, gate: jax.Array) -> None:
        """Ties the last block too: XLA's heap then finds a place for it among those before it."""
        if self.here is not None:
            self.here = tie(self.here, gate, self._setup.gate_at)


def _shift(setup: Setup, x: jax.Array, offset: int, sends: list[bool]) -> jax.Array:
    world = setup.config.world
    pairs = [(r, (r + offset) % world) for r in range(world) if sends[r]]
    return lax.ppermute(x, setup.axis_name, pairs)


class _TravellingSums:
    """dK and dV of travelling blocks. A block's sums start at its first stop away from home, grow
    from stop to stop behind the block, and go home from the last one."""

    def __init__(self, setup: Setup, extras: Extras) -> None:
        self._setup, self._extras = setup, extras
        self.own: list[jax.Array] = []  # dK and dV of this rank's block, float32
        self._onward: jax.Array | None = None  # brings the sums for the next step

    def arrive(self) -> jax.Array | None:
        """What came from the previous stop, for the next hop to add its part to: 0 on ranks to which
        nothing is sent. None: nothing comes to any."""
        arrived, self._onward = self._onward, None
        return arrived

    def pass_on(self, s: int, sums: jax.Array) -> None:
        """Sends the sums after step s home, or on. Those that go on wait for those that come home,
        so that only one more buffer is alive."""
        steps = self._setup.steps
        offset = steps[0][s].offset
        direction = 1 if offset > 0 else -1
        stops = [rank[s].stops for rank in steps]
        if any(stops):
            home = _shift(self._setup, sums, -offset, stops)
            owners = {rank[s].owner for rank in steps if rank[s].stops}
            here = _mine([r in owners for r in range(len(steps))], self._extras.rank)
            self.own = list(accumulate(here.astype(jnp.int32), home, *self.own))
        if s + 1 < len(steps[0]) and steps[0][s + 1].offset == offset + direction:
            if any(stops):
                sums = tie(sums, gate_after(self.own[0]), self._setup.gate_at)
            self._onward = _shift(self._setup, sums, direction, [r[s + 1].sends for r in steps])


_GATE = ((), jnp.int32)  # 0, or 1 once a hop of this rank has failed


def _call(setup: Setup, kind: str, s: int, operands: dict, results: dict) -> dict:
    """The call of step s."""
    if setup.config.world > 1:
        results["gate"] = _GATE
    return hop(
        kind,
        {name: x for name, x in operands.items() if x is not None},
        results,
        setup.config,
        setup.mask,
        offset=setup.steps[0][s].offset,
        first=s == 0,
        last=s + 1 == len(setup.steps[0]),
        packed=s > 0,
        adds=operands.get("sums") is not None,
    )


def _begin(blocks: _TravellingBlocks, query, key, value, extras: Extras) -> dict:  # noqa: ANN001
    """The operands that every hop begins with."""
    here = {
        "key": key,
        "value": value,
        "kv_segment_ids": extras.kv_segment_ids,
        "kv_positions": extras.kv_positions,
    }
    return {
        "query": query,
        **(here if blocks.here is None else {"message": blocks.here}),
        "rank": extras.rank,
        "q_segment_ids": extras.q_segment_ids,
        "q_positions": extras.q_positions,
        "mask": extras.mask,
    }


def _agreed(setup: Setup, status: jax.Array | None, *results: jax.Array) -> tuple:
    """The results, if no rank has failed; otherwise all fail together."""
    if setup.config.world == 1:
        return results
    return agree(lax.pmax(status, setup.axis_name), *results)


def _forward(setup: Setup, query, key, value, sinks, extras: Extras) -> tuple:  # noqa: ANN001
    batch, rows, heads, _ = query.shape
    gate = jnp.zeros((), jnp.int32)
    blocks = _TravellingBlocks(setup, key, value, extras)
    state = None
    count = len(setup.steps[0])
    for s in range(count):
        more = s + 1 < count
        if more:
            blocks.depart(s + 1, gate)  # the next block is on its way ...
        operands = _begin(blocks, query, key, value, extras)  # ... while this one is used
        results = {}
        if not more:
            operands["sinks"] = sinks
            out_shape = (batch, rows, heads, value.shape[3])
            results["out"] = (out_shape, query.dtype)
            results["lse"] = ((batch, heads, rows), jnp.float32)
        if count > 1:
            results["state"] = ((batch, setup.forward_state), jnp.float32)
        if s > 0:
            operands |= {"status": gate, "state": state}
        given = _call(setup, "forward", s, operands, results)
        state, gate = given.get("state"), given.get("gate")
        if more:
            blocks.arrive()
    return _agreed(setup, gate, given["out"], given["lse"])


def _backward_results(setup: Setup, s: int, query, key, value, sinks) -> dict:  # noqa: ANN001
    """What the handler gives in step s, in its order."""
    batch = query.shape[0]
    first, last = s == 0, s + 1 == len(setup.steps[0])
    if first:  # this rank's own; sums if others add to them
        shared = setup.config.world > 1 or setup.config.kv_heads == 1
        results = {
            name: (x.shape, jnp.float32 if shared else x.dtype)
            for name, x in (("dkey", key), ("dvalue", value))
        }
    else:
        # As many numbers as a message has words: buffers of few sizes fit into each other's places.
        results = {"sums": ((batch, setup.words), jnp.float32)}
    if last:
        results["dquery"] = (query.shape, query.dtype)
    if not (first and last):
        results["state"] = ((batch, setup.backward_state), jnp.float32)
    if first and sinks is not None:
        results["dsinks"] = (sinks.shape, jnp.float32)
    if not last and value.shape[3] == query.shape[3]:
        results["dout"] = (query.shape, query.dtype)  # handed on, until dquery takes its place
    return results


def _backward(setup: Setup, query, key, value, sinks, extras, out, lse, dout, dlse):  # noqa: ANN001, ANN202
    # Otherwise XLA takes the first message of the forward for this one, or sends it before the
    # forward has ended, and keeps what it brought.
    gate = gate_after(out) ^ gate_after(dout)
    blocks = _TravellingBlocks(setup, key, value, extras)
    sums = _TravellingSums(setup, extras)
    state, dsinks = None, None
    count = len(setup.steps[0])
    for s in range(count):
        more = s + 1 < count
        if more:
            blocks.depart(s + 1, gate)
        else:
            blocks.stay(gate)
        operands = _begin(blocks, query, key, value, extras) | {"dout": dout}
        if s == 0:
            operands |= {"out": out, "lse": lse, "dlse": dlse, "sinks": sinks}
        else:
            operands |= {"status": gate, "state": state, "sums": sums.arrive()}
        results = _backward_results(setup, s, query, key, value, sinks)
        given = _call(setup, "backward", s, operands, results)
        state, gate, dout = given.get("state"), given.get("gate"), given.get("dout", dout)
        if s == 0:
            sums.own, dsinks = [given["dkey"], given["dvalue"]], given.get("dsinks")
        else:
            sums.pass_on(s, given["sums"])
        if more:
            blocks.arrive()
    return *_agreed(setup, gate, given["dquery"], *sums.own), dsinks


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(setup: Setup, query, key, value, sinks, extras: Extras):  # noqa: ANN001, ANN201
    """out and lse; differentiable once, in query, key, value and sinks."""
    return tuple(_spread.forward(_forward, setup, query, key, value, sinks, extras))


def _attend_forward(setup, query, key, value, sinks, extras):  # noqa: ANN001, ANN202
    config = setup.config._replace(flags=setup.config.flags | LSE)  # the backward needs it
    own = query, key, value, sinks, extras
    out, lse = _spread.forward(_forward, dataclasses.replace(setup, config=config), *own)
    out = checkpoint_name(out, "ring_attention_out")
    lse = checkpoint_name(lse, "ring_attention_lse")
    return (out, lse), (query, key, value, sinks, extras, out, lse)


def _attend_backward(setup, residuals, cotangents):  # noqa: ANN001, ANN202
    query, key, value, sinks, extras, out, lse = residuals
    dout, dlse = cotangents
    if not setup.config.flags & DLSE:
        dlse = None
    own = query, key, value, sinks, extras
    grads = _spread.backward(_backward, setup, *own, out, lse, dout, dlse)
    grads = [None if g is None else g.astype(x.dtype) for g, x in zip(grads, own)]
    return *grads, Extras(*[None] * len(Extras._fields))


attend.defvjp(_attend_forward, _attend_backward)
