# SPDX-License-Identifier: Apache-2.0
"""A ring beside two automatic axes of different sizes, batch over the later one: XLA then numbers
the devices in another order than the mesh; then the ring between the two, and devices in no order.
It takes twelve devices, so a process of its own."""

import re
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

jax.config.update("jax_num_cpu_devices", 12)
sys.path.append(str(Path(__file__).parent))
import test_sharding as t  # noqa: E402

devices = np.array(jax.devices())
args = t.data(g=4, h=8, lead=(3,))
for axes, order in (
    ({"dp": 2, "tp": 3, "sp": 2}, np.arange(12)),
    ({"tp": 3, "sp": 2, "dp": 2}, np.random.default_rng(0).permutation(12)),
):
    on = Mesh(devices[order].reshape(*axes.values()), tuple(axes))
    out, text = t.spread(
        t.ring(t.causal_ring, (t.SP,) * 3)(on), args, [P("tp", "sp", "dp")] * 3, on
    )
    assert not re.search(t.GATHERS, text)
    t.close(out, t.truth(*args, t.visible(32, causal=True)))
print("nothing gathered")
