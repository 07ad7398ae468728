# SPDX-License-Identifier: Apache-2.0
"""Exact attention over sequences too long for one device, sharded over a ring of devices.

``ringattn.jax`` holds the JAX function. This module needs NumPy only; nothing imports JAX before it
is asked for.
"""

from __future__ import annotations

from pathlib import Path

from ._library import LAYOUTS, platforms, positions, version

__all__ = [
    "LAYOUTS", "__version__", "get_cmake_dir", "get_include", "order", "platforms", "positions",
]  # fmt: skip
__version__ = version()


def order(layout: str, length: int, world: int):
    """The global position of every row when a sequence lies on ``world`` ranks in ``layout``.

    ``x[:, order(layout, S, N)]`` cut into N equal pieces gives every rank its shard; ``argsort`` of
    it undoes that. Shape ``[length]``, int64.
    """
    import numpy as np

    return np.concatenate([positions(layout, length, world, rank) for rank in range(world)])


def get_include() -> str:
    """The folder of the C and C++ headers."""
    return str(Path(__file__).parent / "include")


def get_cmake_dir() -> str:
    """The folder to put in CMAKE_PREFIX_PATH for ``find_package(ringattn)``."""
    return str(Path(__file__).parent)
