#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Errors of ringattn and of PyTorch's cuDNN attention beside float64, both passes, in one process on one GPU.

    python3 bench/gpu/errors.py build/dev/bench/libringattn_gpu_bench.so [data.safetensors]

Random normal data; peaked (queries times 4); ramped (values that grow along the sequence); and q, k, v of a
file, such as examples/data/minilm_packed_2k.safetensors, without its mask. Per tensor: largest and rms error of ringattn
over cuDNN's.
"""
import json
import math
import struct
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import Library

NAMES = ("out", "dquery", "dkey", "dvalue")


def from_file(path):
    with open(path, "rb") as f:
        size, = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
        data = f.read()
    tensors = []
    for name in ("query", "key", "value"):
        entry = header[name]
        begin, end = entry["data_offsets"]
        kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[entry["dtype"]]
        tensors.append(torch.frombuffer(bytearray(data[begin:end]), dtype=kind).reshape(entry["shape"]).float().cuda())
    return tensors


def truth(q, k, v, dout, causal):
    """Head by head in float64: memory."""
    results = [torch.empty(t.shape, dtype=torch.float64, device="cuda") for t in (q, q, k, v)]
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            leaves = [t[b, :, h].double().requires_grad_() for t in (q, k, v)]
            s = leaves[0] @ leaves[1].T / math.sqrt(q.shape[-1])
            if causal:
                s = s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1), -math.inf)
            out = torch.softmax(s, -1) @ leaves[2]
            grads = torch.autograd.grad(out, leaves, dout[b, :, h].double())
            for to, x in zip(results, (out.detach(), *grads)):
                to[b, :, h] = x
    return results


def compare(lib, title, q, k, v, causal, dtype):
    q, k, v = [t.to(dtype).contiguous() for t in (q, k, v)]
    dout = torch.randn_like(q)
    b, s, h, d = q.shape
    exact = truth(q, k, v, dout, causal)
    out, dq, dk, dv = [torch.empty_like(t) for t in (q, q, k, v)]
    lse = torch.empty(b, h, s, device="cuda")
    handle = lib.make(b, s, s, h, h, d, dtype, int(causal))
    lib.call("forward", handle, q, k, v, out, lse)
    lib.call("backward", handle, q, k, v, out, lse, dout, dq, dk, dv)
    peer = [t.detach().transpose(1, 2).requires_grad_() for t in (q, k, v)]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        peer_out = F.scaled_dot_product_attention(*peer, is_causal=causal)
        theirs = [peer_out, *torch.autograd.grad(peer_out, peer, dout.transpose(1, 2))]
    text = f"{title:8s} D{d} {b}x{s} {'causal' if causal else 'full':6s} {str(dtype)[6:]:8s}"
    for name, ours, peers, x in zip(NAMES, (out, dq, dk, dv), theirs, exact):
        mine = (ours.double() - x).abs()
        other = (peers.transpose(1, 2).double() - x).abs()
        rms = (mine.square().mean() / other.square().mean()).sqrt().item()
        text += f"  {name} {mine.max().item():.1e} {mine.max().item() / other.max().item():.2f}x rms {rms:.2f}x"
    print(text, flush=True)
    lib.c.ringattn_bench_destroy(handle)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    lib = Library(sys.argv[1])
    torch.manual_seed(1)
    for d in (64, 128, 256):
        for dtype in (torch.bfloat16, torch.float16):
            for causal in (False, True):
                q, k, v = [torch.randn(1, 2048, 4, d, device="cuda") for _ in range(3)]
                compare(lib, "random", q, k, v, causal, dtype)
                compare(lib, "peaked", q * 4, k, v, causal, dtype)
                ramp = torch.linspace(0, 4, 2048, device="cuda")[None, :, None, None]
                compare(lib, "ramped", q, k, v + ramp, causal, dtype)
    if len(sys.argv) > 2:
        for dtype in (torch.bfloat16, torch.float16):
            compare(lib, "file", *from_file(sys.argv[2]), True, dtype)


if __name__ == "__main__":
    main()
