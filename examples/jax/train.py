# SPDX-License-Identifier: Apache-2.0
"""A few training steps of a small causal transformer whose sequence lies on a ring of eight CPU
devices, beside the same steps with plain attention on one device. The losses fall, and agree.

    python examples/jax/train.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ringattn.jax import ring_attention

BATCH, SEQ, WIDTH, HEADS, LAYERS, WORDS = 2, 128, 32, 4, 2, 64


def parameters(key):
    """Embedding, and for each layer the weights of attention and of the network behind it."""
    keys = iter(jax.random.split(key, 2 + 3 * LAYERS))
    matrix = lambda *shape: jax.random.normal(next(keys), shape) * shape[0] ** -0.5
    return {
        "words": matrix(WORDS, WIDTH),
        "places": matrix(SEQ, WIDTH),
        "layers": [
            {"qkv": matrix(WIDTH, 3 * WIDTH), "up": matrix(WIDTH, 4 * WIDTH),
             "down": matrix(4 * WIDTH, WIDTH)}
            for _ in range(LAYERS)
        ],
    }  # fmt: skip


def norm(x):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def loss(weights, tokens, attention):
    """Cross-entropy of the next token, nats."""
    x = weights["words"][tokens] + weights["places"]
    for layer in weights["layers"]:
        q, k, v = jnp.split((norm(x) @ layer["qkv"]).reshape(BATCH, SEQ, 3 * HEADS, -1), 3, 2)
        x = x + attention(q, k, v).reshape(x.shape)
        x = x + jax.nn.gelu(norm(x) @ layer["up"]) @ layer["down"]
    logits = jax.nn.log_softmax(norm(x) @ weights["words"].T)
    return -jnp.take_along_axis(logits[:, :-1], tokens[:, 1:, None], 2).mean()


def train(attention, steps=5, rate=0.2):
    """The loss before each step."""
    weights = parameters(jax.random.key(0))
    start = jax.random.randint(jax.random.key(1), (BATCH, 1), 0, WORDS)
    tokens = (start + 3 * jnp.arange(SEQ)) % WORDS

    @jax.jit
    def step(weights):
        value, grads = jax.value_and_grad(loss)(weights, tokens, attention)
        return value, jax.tree.map(lambda w, g: w - rate * g, weights, grads)

    losses = []
    for _ in range(steps):
        value, weights = step(weights)
        losses.append(float(value))
    return losses


def attentions():
    """The ring, and plain attention."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("sp",))
    ring = jax.shard_map(
        lambda q, k, v: ring_attention(q, k, v, causal=True, axis_name="sp"),
        mesh=mesh, in_specs=P(None, "sp"), out_specs=P(None, "sp"),
    )  # fmt: skip
    plain = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return ring, plain


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    print("step  ring      plain")
    for number, pair in enumerate(zip(*(train(a) for a in attentions()))):
        print(f"{number:4}  {pair[0]:.6f}  {pair[1]:.6f}")
