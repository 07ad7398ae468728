# SPDX-License-Identifier: Apache-2.0
"""Attention and its gradients as docs/contract.md writes them, in float64, all pairs at once."""

import numpy as np


def visible(seq, causal=False, sliding_window=None, chunk_size=None, ids=None):
    """[B or 1, 1, S, S] of the arguments that say who sees whom."""
    q, k = np.arange(seq)[:, None], np.arange(seq)[None, :]
    mask = np.ones((seq, seq), bool)
    if causal or chunk_size:
        mask &= k <= q
    if chunk_size:
        mask &= q // chunk_size == k // chunk_size
    if sliding_window is not None:
        left, right = np.broadcast_to(sliding_window, 2)
        mask &= (q - left <= k) & (k <= q + right)
    if ids is None:
        return mask[None, None]
    same = (ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, :, None]
    return (mask & same)[:, None]


def sinks_of_heads(sinks, heads):
    """[H] logits of any form of softmax_aux."""
    sinks = np.asarray(sinks, np.float64)
    if sinks.ndim == 1 and sinks.shape[0] == heads:
        return sinks
    return np.broadcast_to(np.logaddexp.reduce(sinks, axis=-1), heads)


class Dense:
    """One problem of [B, S, H, D] arrays with as many key as query heads."""

    def __init__(self, q, k, v, mask, scale=None, cap=None, sinks=None):
        x = [np.asarray(y, np.float64).transpose(0, 2, 1, 3) for y in (q, k, v)]
        self.q, self.k, self.v = x
        self.scale, self.cap = scale or self.q.shape[-1] ** -0.5, cap
        s = self.scale * self.q @ self.k.swapaxes(-1, -2)
        self.slope = 1.0
        if cap:
            s = cap * np.tanh(s / cap)
            self.slope = 1 - (s / cap) ** 2
        s = np.where(mask, s, -np.inf)
        heads = self.q.shape[1]
        self.sinks = np.full(heads, -np.inf) if sinks is None else sinks_of_heads(sinks, heads)
        top = np.maximum(s.max(-1, keepdims=True), self.sinks[:, None, None])
        top = np.where(np.isfinite(top), top, 0)
        p = np.exp(s - top)
        self.sink_part = np.exp(self.sinks[:, None, None] - top)
        total = p.sum(-1, keepdims=True) + self.sink_part
        total = np.where(total > 0, total, 1)
        self.p, self.sink_part = p / total, self.sink_part / total
        self.heads_first = self.p @ self.v

    @property
    def out(self):
        return self.heads_first.transpose(0, 2, 1, 3)

    def gradients(self, dout):
        """dq, dk, dv of sum(out * dout), and dsinks of every head."""
        g = np.asarray(dout, np.float64).transpose(0, 2, 1, 3)
        delta = (g * self.heads_first).sum(-1, keepdims=True)
        ds = self.p * (g @ self.v.swapaxes(-1, -2) - delta) * self.slope * self.scale
        grads = ds @ self.k, ds.swapaxes(-1, -2) @ self.q, self.p.swapaxes(-1, -2) @ g
        dsinks = -(self.sink_part * delta).sum((0, 2, 3))
        return [x.transpose(0, 2, 1, 3) for x in grads], dsinks
