# SPDX-License-Identifier: Apache-2.0
"""A pass inside a ``shard_map`` that leaves some mesh axes to the compiler: each device does it for
the batch rows and heads that the compiler gave it, as under plain ``jit`` (``_partition.py``).

The whole pass is one call to the compiler, since messages and states hide where their heads are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from . import _partition
from ._calls import all_varying, once_differentiable
from ._message import Extras, Setup, set_up
from ._partition import Partition

Arrays = dict[str, jax.Array]


def forward(ring: Callable, setup: Setup, query, key, value, sinks, extras: Extras) -> tuple:  # noqa: ANN001
    """ring(...), which gives out and lse."""
    if not _automatic_beside_manual(query):
        return ring(setup, query, key, value, sinks, extras)
    batch, rows, heads, _ = query.shape

    def local(setup: Setup, x: Arrays) -> Arrays:
        out, lse = ring(setup, *_taken(x))
        return {"out": out, "lse": lse}

    shapes = {"out": (batch, rows, heads, value.shape[3]), "lse": (batch, heads, rows)}
    operands = _operands(query, key, value, sinks, extras)
    return tuple(_spread(local, setup, operands, shapes).values())


def backward(ring: Callable, setup: Setup, query, key, value, sinks, extras, *rest: Any) -> tuple:  # noqa: ANN001
    """ring(...), which gives dquery, dkey, dvalue and dsinks; `rest`: out, lse, dout, dlse."""
    if not _automatic_beside_manual(query):
        return ring(setup, query, key, value, sinks, extras, *rest)
    batch, _, heads, _ = query.shape
    names = ("out", "lse", "dout", "dlse")
    operands = _operands(query, key, value, sinks, extras) | dict(zip(names, rest))
    # What the devices have to sum: each puts its part into a place of its own, and the compiler
    # sums over these. Named axes would not do: it numbers the devices of a group as it likes.
    shared_kv = setup.config.kv_heads == 1
    shapes = {"dquery": query.shape}
    for name, x in (("dkey", key), ("dvalue", value)):
        shape = (*x.shape[:2], heads, x.shape[3]) if shared_kv else x.shape
        shapes[f"{name}_of_heads" if shared_kv else name] = shape
    if sinks is not None:
        shapes["dsinks_of_rows"] = (batch, *operands["sinks"].shape)

    def local(setup: Setup, x: Arrays) -> Arrays:
        dquery, dkey, dvalue, dsinks = ring(setup, *_taken(x), *(x.get(n) for n in names))
        dkey, dvalue = dkey.astype(jnp.float32), dvalue.astype(jnp.float32)  # however spread
        if shared_kv:
            dkey, dvalue = (_first_of(y, 2, dquery.shape[2]) for y in (dkey, dvalue))
        if dsinks is not None:
            dsinks = _first_of(dsinks[None], 0, dquery.shape[0])
        return {n: y for n, y in zip(shapes, (dquery, dkey, dvalue, dsinks))}

    dquery, dkey, dvalue, *dsinks = _spread(local, setup, operands, shapes).values()
    if shared_kv:
        dkey, dvalue = dkey.sum(2, keepdims=True), dvalue.sum(2, keepdims=True)
    if sinks is None:
        return dquery, dkey, dvalue, None
    summed = dsinks[0].sum(0)
    return dquery, dkey, dvalue, summed.sum(0) if summed.ndim > sinks.ndim else summed


def _automatic_beside_manual(x: jax.Array) -> bool:
    """Are some axes of the mesh manual, and is the compiler free to shard x over others?"""
    mesh = jax.typeof(x).sharding.mesh
    kinds = {t for t, size in zip(mesh.axis_types, mesh.axis_sizes) if size > 1}
    if mesh.empty or not _partition.BESIDE_MANUAL_AXES:
        return False
    return AxisType.Auto in kinds and AxisType.Manual in mesh.axis_types


def _operands(query, key, value, sinks, extras: Extras) -> dict:  # noqa: ANN001
    """By name; each head has its sinks."""
    heads = query.shape[2]
    if sinks is not None and sinks.ndim == 1 and sinks.shape[0] != heads:
        sinks = jnp.broadcast_to(sinks, (heads, sinks.shape[0]))
    own = {"query": query, "key": key, "value": value, "sinks": sinks}
    return own | extras._asdict()


def _taken(x: Arrays) -> tuple:
    extras = Extras(*(x.get(name) for name in Extras._fields))
    return x["query"], x["key"], x["value"], x.get("sinks"), extras


def _first_of(x: jax.Array, axis: int, size: int) -> jax.Array:
    """x, of size 1 along `axis`, and zeros behind it."""
    return jnp.pad(x, [(0, size - 1 if i == axis else 0) for i in range(x.ndim)])


def _spread(
    local: Callable[[Setup, Arrays], Arrays], setup: Setup, operands: dict, shapes: dict
) -> Arrays:
    """local(setup, operands), with results of these shapes, on each device with its part."""
    operands = {name: x for name, x in operands.items() if x is not None}

    def build(lead: tuple) -> Callable:
        def body(config: Any, _shapes: dict, xs: Arrays) -> Arrays:
            batch = xs["query"].shape[len(lead)]
            own = set_up(config, batch, setup.mask, setup.axis_name)
            given = _over(len(lead), lambda x: local(own, x), xs)
            return {name: given[name] for name in shapes}  # vmap sorts them

        @jax.custom_batching.custom_vmap
        def call(*xs: jax.Array) -> tuple:
            given = dict(zip(operands, all_varying(xs)))
            mesh = jax.typeof(xs[0]).sharding.mesh
            partition = Partition(setup.config, lead, setup.heads_alike, mesh)
            results = {name: (*lead, *shape) for name, shape in shapes.items()}
            return tuple(partition.call(body, results, given).values())

        @call.def_vmap
        def rule(size: int, batched: Sequence[bool], *xs: jax.Array) -> tuple:
            out = build((size, *lead))(*(x if b else x[None] for x, b in zip(xs, batched)))
            return out, (True,) * len(shapes)

        return call

    return dict(zip(shapes, once_differentiable(build(()))(*operands.values())))


def _over(depth: int, f: Callable[[Arrays], Arrays], xs: Arrays) -> Arrays:
    """f over `depth` leading dimensions; an array has 1 there if all indices share it."""
    if depth == 0:
        return f(xs)
    size = max(x.shape[0] for x in xs.values())
    axes = {name: 0 if x.shape[0] == size else None for name, x in xs.items()}
    given = {name: x if axes[name] == 0 else x[0] for name, x in xs.items()}
    return jax.vmap(lambda x: _over(depth - 1, f, x), in_axes=(axes,))(given)
