# SPDX-License-Identifier: Apache-2.0
"""A call on one device of a mesh whose axes are automatic: under plain ``jit`` the compiler spreads
what a program does over devices, and would gather the operands of a call that it knows nothing of.

Batch rows, and kv heads with their query heads, are independent: each device calls with its own.
Everything else is gathered.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from ._library import Config

try:  # JAX has no public names for these
    from jax._src.config import _check_vma
    from jax._src.sharding_impls import parse_flatten_op_sharding
except ImportError:
    _check_vma = parse_flatten_op_sharding = None

# Without those names a call beside manual axes is left to the compiler, which gathers.
BESIDE_MANUAL_AXES = parse_flatten_op_sharding is not None

# The dimensions of operands and results. b: batch, h: query heads, g: kv heads; a capital one is
# never sharded. Those of sinks depend on their shape.
_DIMENSIONS = {
    "query": "bQhD", "key": "bKgD", "value": "bKgE", "rank": "",
    "q_segment_ids": "bQ", "kv_segment_ids": "bK", "q_positions": "Q", "kv_positions": "K",
    "mask": "M", "out": "bQhE", "lse": "bhQ", "dout": "bQhE", "dlse": "bhQ",
    "dquery": "bQhD", "dkey": "bKgD", "dvalue": "bKgE", "dkey_of_heads": "bKhD",
    "dvalue_of_heads": "bKhE",
}  # fmt: skip

Shapes = dict[str, tuple[int, ...]]
Body = Callable[[Config, Shapes, dict[str, jax.Array]], dict[str, jax.Array]]


def automatic(x: jax.Array) -> bool:
    """Is the compiler free to shard x over any mesh?"""
    mesh = jax.typeof(x).sharding.mesh
    return mesh.empty or all(t == AxisType.Auto for t in mesh.axis_types)


def over_explicit_axes(call: Callable[..., Any], query: jax.Array, *args: Any) -> Any:
    """call(query, *args), whose results are spread as query is, on a mesh with explicit axes: they
    are automatic inside."""
    sharding = jax.typeof(query).sharding
    types = zip(sharding.mesh.axis_names, sharding.mesh.axis_types)
    axes = tuple(name for name, kind in types if kind == AxisType.Explicit)
    if not axes:
        return call(query, *args)
    batch, rows, heads, _ = (*sharding.spec, None, None, None, None)[:4]
    specs = PartitionSpec(batch, rows, heads, None), PartitionSpec(batch, heads, rows)
    return jax.sharding.auto_axes(call, axes=axes, out_sharding=specs)(query, *args)


class Partition:
    """How one call is spread. `lead`: the sizes of leading dimensions, from vmap; an operand has 1
    there if all indices share it. `heads_alike`: the mask does not tell heads apart. `mesh`: that
    of a shard_map around, if some of its axes are automatic."""

    def __init__(
        self, config: Config, lead: tuple, heads_alike: bool, mesh: AbstractMesh | None = None
    ) -> None:
        self._config, self._lead, self._heads_alike = config, lead, heads_alike
        self._mesh = mesh

    def call(self, body: Body, results: Shapes, operands: dict[str, jax.Array]) -> dict:
        """body(config, results, operands), on each device with its part of them."""
        names, shapes = list(operands), {n: x.shape for n, x in operands.items()}
        dims = {n: self._dimensions(n, s) for n, s in (shapes | results).items()}

        def partition(mesh: Any, args: Any, _results: Any) -> tuple:
            given = {n: x.sharding for n, x in zip(names, args)}
            around = mesh if self._mesh is None else self._mesh
            if self._mesh is not None:
                mesh, given = _automatic_part(self._mesh, given)
            split = self._split(mesh, given, dims)
            shardings = {
                n: NamedSharding(mesh, PartitionSpec(*[split.get(d) or None for d in ds]))
                for n, ds in dims.items()
            }
            local = {n: shardings[n].shard_shape(s) for n, s in results.items()}

            def lower(*xs: jax.Array) -> tuple:
                with _outside():
                    given = self._on_one(body, mesh, split, dims, local, dict(zip(names, xs)))
                return tuple(given.values())

            order = lambda which: tuple(shardings[n] for n in which)
            return around, lower, order(results), order(names)

        def whole(*xs: jax.Array) -> tuple:
            return tuple(body(self._config, results, dict(zip(names, xs))).values())

        spread = custom_partitioning(whole)
        rule, more = self._rule([dims[n] for n in names], [dims[n] for n in results])
        decode = self._mesh is None  # JAX knows no mesh inside a shard_map
        spread.def_partition(
            partition=partition, sharding_rule=rule, decode_shardings=decode, **more
        )
        return dict(zip(results, spread(*operands.values())))

    def _dimensions(self, name: str, shape: tuple) -> list[str]:
        """A name for every dimension; leading ones are v0, v1, ..., or V for one of size 1."""
        config, lead = self._config, len(self._lead)
        rows = "b" if name == "dsinks_of_rows" else ""
        if rows or name in ("sinks", "dsinks"):
            one = "h" if shape[-1] == config.query_heads else "S"
            dims = rows + (one if len(shape) == lead + len(rows) + 1 else "hS")
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


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    """Outside the shard_map that JAX is in if that is not under ``jit``: then XLA asks for one
    device's program while its axes are still bound."""
    with _check_vma(False), jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        yield


def _automatic_part(mesh: AbstractMesh, shardings: dict[str, Any]) -> tuple[AbstractMesh, dict]:
    """The automatic axes, and the shardings over them. Inside a shard_map XLA numbers the devices
    of these axes in an order of its own, the same for all operands: it is looked for."""
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types)
    axes = [(name, size) for name, size, kind in kinds if kind == AxisType.Auto]
    for order in itertools.permutations(axes):
        part = AbstractMesh(tuple(n for _, n in order), tuple(name for name, _ in order))
        try:
            specs = {
                n: parse_flatten_op_sharding(s._to_xla_hlo_sharding(0), part)[0]
                for n, s in shardings.items()
            }
        except ValueError:  # another order
            continue
        return part, {n: NamedSharding(part, spec) for n, spec in specs.items()}
    return part, {}  # none, if it shards one dimension in a way that no axes say: gathered


def _sum(x: jax.Array, axes: tuple) -> jax.Array:
    return lax.psum(x, axes) if axes else x
