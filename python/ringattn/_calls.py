# SPDX-License-Identifier: Apache-2.0
"""One hop as an XLA FFI call: registration, varying axes, vmap, and no second derivative.

Everything that depends on the version of JAX is here.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from ._library import ABI, Bitmap, Config, library
from ._partition import Partition, automatic

TARGETS = {
    "forward": f"ringattn_v{ABI}_forward_hop",
    "backward": f"ringattn_v{ABI}_backward_hop",
    "accumulate": f"ringattn_v{ABI}_accumulate",
    "agree": f"ringattn_v{ABI}_agree",
}
_SYMBOLS = {
    "forward": "forward_hop", "backward": "backward_hop",
    "accumulate": "accumulate", "agree": "agree",
}  # fmt: skip
_NO_BITMAP = Bitmap().words()


@functools.cache
def register() -> None:
    """Makes the handlers known to XLA, at the first use; on GPUs those that refuse, in a build
    without CUDA. JAX keeps them for a platform that is not there yet.

    A handler that is newer than the runtime would cost the user the whole CPU backend: ask first.
    """
    header = os.path.join(jax.ffi.include_dir(), "xla/ffi/api/c_api.h")
    with open(header, encoding="utf-8") as file:
        runtime = int(re.search(r"#define XLA_FFI_API_MINOR (\d+)", file.read()).group(1))
    if library().ringattn_xla_ffi_minor() > runtime:
        raise ImportError(
            f"ringattn: built for XLA FFI 0.{library().ringattn_xla_ffi_minor()}, but jaxlib "
            f"{jax.lib.__version__} has 0.{runtime}; install jax >= 0.8"
        )

    def handler(name: str) -> Any:
        return jax.ffi.pycapsule(getattr(library(), f"ringattn_xla_{name}"))

    for kind, name in TARGETS.items():
        jax.ffi.register_ffi_target(name, handler(_SYMBOLS[kind]), platform="cpu")
    for kind in ("forward", "backward"):
        stages = {"instantiate": handler("cuda_check"), "execute": handler(f"cuda_{_SYMBOLS[kind]}")}
        jax.ffi.register_ffi_target(TARGETS[kind], stages, platform="CUDA")


def varying(x: jax.Array) -> frozenset:
    """The mesh axes over which x differs, as shard_map knows them."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)
    return frozenset(manual.varying if manual is not None else aval.vma)


def to_varying(x: jax.Array, axes: frozenset) -> jax.Array:
    """x, which now counts as different over `axes`; the transpose sums over those that are new."""
    new = tuple(sorted(axes - varying(x)))
    if not new:
        return x
    return lax.pcast(x, new, to="varying") if hasattr(lax, "pcast") else lax.pvary(x, new)


def all_varying(xs: Sequence[jax.Array | None]) -> list:
    """All of xs over the union of their axes."""
    axes = frozenset().union(*(varying(x) for x in xs if x is not None))
    return [None if x is None else to_varying(x, axes) for x in xs]


def _result(like: jax.Array, shape: tuple, dtype: Any) -> jax.ShapeDtypeStruct:
    """The type of a result that varies as `like` does."""
    aval = jax.typeof(like)
    if aval.sharding.mesh.empty:
        return jax.ShapeDtypeStruct(shape, dtype)
    if hasattr(jax.sharding, "ManualAxisType"):
        axes = {"manual_axis_type": jax.sharding.ManualAxisType(varying=varying(like))}
    else:
        axes = {"vma": varying(like)}
    sharding = NamedSharding(aval.sharding.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding, **axes)


def once_differentiable(call: Callable[..., Any]) -> Any:
    """call, which a rule for a derivative has: whoever asks for another one is told."""
    guarded = jax.custom_jvp(call)

    @guarded.defjvp
    def refuse(_primals: Any, _tangents: Any) -> Any:
        raise NotImplementedError(
            "ring_attention: second derivatives and forward-mode differentiation are not "
            "supported; it can be differentiated once, in reverse mode"
        )

    return guarded


def hop(
    kind: str,
    operands: dict[str, jax.Array],
    results: dict[str, tuple[tuple, Any]],
    config: Config,
    mask: Any,
    **attributes: Any,
) -> dict[str, jax.Array]:
    """Calls a handler, which takes operands and results in this order.

    What comes in and goes out under one name is updated where it lies, and the last hop of a ring
    may write dquery where dout lay. Status and gate are one number for the whole call. `mask`: a
    CompiledMask or None.
    """
    register()
    heads_alike = mask is None or mask.heads_alike
    bitmap = _NO_BITMAP if mask is None else mask.bitmap_numbers
    dtypes = {name: dtype for name, (_, dtype) in results.items()}
    names = list(operands)
    places = {name: name for name in results if name in operands}  # whose memory a result takes
    if "state" in operands and "dquery" in results:
        places["dquery"] = "dout"

    def body(config: Config, shapes: dict[str, tuple], xs: dict[str, jax.Array]) -> dict:
        like = next(iter(xs.values()))
        types = [_result(like, shape, dtypes[name]) for name, shape in shapes.items()]
        aliases = {
            list(xs).index(places[name]): i
            for i, (name, t) in enumerate(zip(shapes, types))
            if (x := xs.get(places.get(name))) is not None and (x.shape, x.dtype) == (t.shape, t.dtype)
        }
        ffi = jax.ffi.ffi_call(TARGETS[kind], types, input_output_aliases=aliases)
        rank = xs["sinks"].ndim - like.ndim + 4 if "sinks" in xs else 0
        numbers = {name: np.int64(x) for name, x in attributes.items()}
        numbers |= {"config": config.words(), "bitmap": bitmap, "sinks_rank": np.int64(rank)}
        return dict(zip(shapes, ffi(*xs.values(), **numbers)))

    def build(lead: tuple) -> Any:
        @jax.custom_batching.custom_vmap
        def call(*xs: jax.Array) -> tuple:
            xs = all_varying(xs)
            given = dict(zip(names, xs))
            shapes = {
                name: shape if name == "gate" else (*lead, *shape)
                for name, (shape, _) in results.items()
            }
            if config.world == 1 and automatic(xs[0]):
                spread = Partition(config, lead, heads_alike)
                return tuple(spread.call(body, shapes, given).values())
            return tuple(body(config, shapes, given).values())

        @call.def_vmap
        def rule(size: int, batched: Sequence[bool], *xs: jax.Array) -> tuple:
            # What is not batched keeps one copy; the handler uses it for every index.
            whole = [b or name == "status" for b, name in zip(batched, names)]
            out = build((size, *lead))(*(x if w else x[None] for x, w in zip(xs, whole)))
            return out, tuple(name != "gate" for name in results)

        return call

    return dict(zip(results, once_differentiable(build(()))(*operands.values())))


def accumulate(there: jax.Array, part: jax.Array, *totals: jax.Array) -> tuple[jax.Array, ...]:
    """The totals, where they lie, with what lies one behind the other in `part` added to them; or as
    they are, if `there` is 0. XLA would put its own sum into a buffer beside the total."""
    count = len(totals)

    @jax.custom_batching.custom_vmap
    def call(*xs: jax.Array) -> tuple:
        xs = all_varying(xs)
        types = [_result(xs[0], x.shape, x.dtype) for x in xs[2:]]
        aliases = {i + 2: i for i in range(len(types))}
        name = TARGETS["accumulate"]
        return tuple(jax.ffi.ffi_call(name, types, input_output_aliases=aliases)(*xs))

    @call.def_vmap
    def rule(size: int, batched: Sequence[bool], *xs: jax.Array) -> tuple:
        xs = [x if b else jnp.broadcast_to(x, (size, *x.shape)) for x, b in zip(xs, batched)]
        return accumulate(*xs), (True,) * count

    return call(there, part, *totals)


def agree(status: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays, where they lie; or, if `status` says that a rank has failed, an error. It has to
    be the same on all ranks: if only one stopped, XLA would end the process with the others."""

    @jax.custom_batching.custom_vmap
    def call(*xs: jax.Array) -> tuple:
        xs = all_varying(xs)
        types = [_result(xs[0], x.shape, x.dtype) for x in xs[1:]]
        aliases = {i + 1: i for i in range(len(types))}
        return tuple(jax.ffi.ffi_call(TARGETS["agree"], types, input_output_aliases=aliases)(*xs))

    @call.def_vmap
    def rule(_size: int, batched: Sequence[bool], *xs: jax.Array) -> tuple:
        return agree(*xs), tuple(batched[1:])

    return call(status, *arrays)
