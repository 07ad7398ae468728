# SPDX-License-Identifier: Apache-2.0
"""A call on one device of a mesh whose axes are automatic: under plain ``jit`` the compiler spreads
what a program does over devices, and would gather the operands of a call that it knows nothing of.

Batch rows, and kv heads with their query heads, are independent: each device calls with its own.
Everything else is gathered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from ._library import Config

# The dimensions of operands and results. b: batch, h: query heads, g: kv heads; a capital one is
# never sharded. Those of sinks depend on their shape.
_DIMENSIONS = {
    "query": "bQhD", "key": "bKgD", "value": "bKgE", "rank": "",
    "q_segment_ids": "bQ", "kv_segment_ids": "bK", "q_positions": "Q", "kv_positions": "K",
    "mask": "M", "out": "bQhE", "lse": "bhQ", "dout": "bQhE", "dlse": "bhQ",
    "dquery": "bQhD", "dkey": "bKgD", "dvalue": "bKgE",
}  # fmt: skip

Shapes = dict[str, tuple[int, ...]]
Body = Callable[[Config, Shapes, dict[str, jax.Array]], dict[str, jax.Array]]


def automatic(x: jax.Array) -> bool:
    """Is the compiler free to shard x over any mesh?"""
    mesh = jax.typeof(x).sharding.mesh
    return mesh.empty or all(t == jax.sharding.AxisType.Auto for t in mesh.axis_types)


def over_explicit_axes(call: Callable[..., Any], query: jax.Array, *args: Any) -> Any:
    """call(query, *args), whose results are spread as query is, on a mesh with explicit axes: they
    are automatic inside."""
    sharding = jax.typeof(query).sharding
    types = zip(sharding.mesh.axis_names, sharding.mesh.axis_types)
    axes = tuple(name for name, kind in types if kind == jax.sharding.AxisType.Explicit)
    if not axes:
        return call(query, *args)
    batch, rows, heads, _ = (*sharding.spec, None, None, None, None)[:4]
    specs = PartitionSpec(batch, rows, heads, None), PartitionSpec(batch, heads, rows)
    return jax.sharding.auto_axes(call, axes=axes, out_sharding=specs)(query, *args)


class Partition:
    """How one call is spread. `lead`: the sizes of leading dimensions, from vmap; an operand has 1
    there if all indices share it. `heads_alike`: the mask does not tell heads apart."""

    def __init__(self, config: Config, lead: tuple, heads_alike: bool) -> None:
        self._config, self._lead, self._heads_alike = config, lead, heads_alike

    def call(self, body: Body, results: Shapes, operands: dict[str, jax.Array]) -> dict:
        """body(config, results, operands), on each device with its part of them."""
        names, shapes = list(operands), {n: x.shape for n, x in operands.items()}
        dims = {n: self._dimensions(n, s) for n, s in (shapes | results).items()}

        def partition(mesh: Any, args: Any, _results: Any) -> tuple:
            split = self._split(mesh, {n: x.sharding for n, x in zip(names, args)}, dims)
            shardings = {
                n: NamedSharding(mesh, PartitionSpec(*[split.get(d) or None for d in ds]))
                for n, ds in dims.items()
            }
            local = {n: shardings[n].shard_shape(s) for n, s in results.items()}

            def lower(*xs: jax.Array) -> tuple:
                given = self._on_one(body, mesh, split, dims, local, dict(zip(names, xs)))
                return tuple(given.values())

            order = lambda which: tuple(shardings[n] for n in which)
            return mesh, lower, order(results), order(names)

        def whole(*xs: jax.Array) -> tuple:
            return tuple(body(self._config, results, dict(zip(names, xs))).values())

        spread = custom_partitioning(whole)
        rule, more = self._rule([dims[n] for n in names], [dims[n] for n in results])
        spread.def_partition(partition=partition, sharding_rule=rule, **more)
        return dict(zip(results, spread(*operands.values())))

    def _dimensions(self, name: str, shape: tuple) -> list[str]:
        """A name for every dimension; leading ones are v0, v1, ..., or V for one of size 1."""
        config, lead = self._config, len(self._lead)
        if name in ("sinks", "dsinks"):
            one = "h" if shape[-1] == config.query_heads else "S"
            dims = one if len(shape) == lead + 1 else "hS"
        else:
            dims = _DIMENSIONS[name]
        if config.kv_heads == 1:  # every device has it
            dims = dims.replace("g", "G")
        elif config.kv_heads == config.query_heads:
            dims = dims.replace("h", "g")
        return [*(f"v{i}" if shape[i] == n else "V" for i, n in enumerate(self._lead)), *dims]

    def _rule(self, operands: list, results: list) -> tuple[str, dict]:
        """As Shardy reads it: a query head is one of r of a kv head."""
        config, used = self._config, {d for ds in (*operands, *results) for d in ds}
        grouped = {"g", "h"} <= used
        fixed: list[str] = []  # in the order of their first use, as it must be

        def factor(d: str) -> str:
            if d == "h" and grouped:
                if "r" not in fixed:
                    fixed.append("r")
                return "(g r)"
            if d[0].isupper():
                d = f"x{len(fixed)}"
                fixed.append(d)
            return d

        sides = [
            ", ".join(" ".join(factor(d) for d in ds) for ds in side)
            for side in (operands, results)
        ]
        sizes = {"r": config.query_heads // config.kv_heads} if grouped else {}
        return " -> ".join(sides), {"need_replication_factors": tuple(fixed), **sizes}

    def _split(self, mesh: Any, shardings: dict[str, Any], dims: dict[str, list]) -> dict:
        """The mesh axes over which each dimension is spread, as the first operand has them."""
        split: dict[str, tuple] = {}
        taken: set = set()  # an axis serves one dimension
        for name, sharding in shardings.items():
            for d, axes in zip(dims[name], getattr(sharding, "spec", ())):
                d = "h" if d == "g" else d
                if d[0].isupper() or d in split or axes is None:
                    continue
                axes = axes if isinstance(axes, tuple) else (axes,)
                split[d] = tuple(a for a in axes if a not in taken)
                taken.update(axes)
        heads = self._config.query_heads if self._config.kv_heads == 1 else self._config.kv_heads
        parts = math.prod(mesh.shape[a] for a in split.get("h", ()))
        if heads % parts or not self._heads_alike:
            split["h"] = ()
        split["g"] = split.setdefault("h", ())
        return split

    def _on_one(
        self, body: Body, mesh: Any, split: dict, dims: dict, results: Shapes, xs: dict
    ) -> dict:
        """The call with one device's part."""
        parts = math.prod(mesh.shape[a] for a in split["h"])
        one_kv_head = self._config.kv_heads == 1
        heads = self._config.query_heads // parts
        config = self._config._replace(
            query_heads=heads, kv_heads=1 if one_kv_head else self._config.kv_heads // parts
        )
        # Sinks that all heads share must not be taken for one of each head that is here.
        shared = "sinks" in xs and parts > 1 and not {"h", "g"} & set(dims["sinks"])
        if shared:
            xs["sinks"] = jnp.repeat(xs["sinks"][..., None, :], heads, axis=-2)
        if shared and "dsinks" in results:
            *lead, length = results["dsinks"]
            results = results | {"dsinks": (*lead, heads, length)}
        out = body(config, results, xs)
        if "dsinks" in out:
            if shared:
                out["dsinks"] = out["dsinks"].sum(-2)
            out["dsinks"] = _sum(out["dsinks"], split.get("b", ()) + (split["h"] if shared else ()))
        if one_kv_head:
            out |= {n: _sum(out[n], split["h"]) for n in ("dkey", "dvalue") if n in out}
        return out


def _sum(x: jax.Array, axes: tuple) -> jax.Array:
    return lax.psum(x, axes) if axes else x
