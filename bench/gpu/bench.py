#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times ringattn on one GPU beside PyTorch's cuDNN attention, in one process.

    python3 bench/gpu/bench.py build/dev/bench/libringattn_gpu_bench.so [results.json]

Random normal inputs; medians over CUDA events, the two taken in turns; sampled rows are compared with
float64 first, beside cuDNN's own error. FLOPs: 4 B H S^2 D forward, 2.5 times that backward, half of it
for causal.
"""
import ctypes
import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Library:
    def __init__(self, path):
        self.c = ctypes.CDLL(path)
        self.c.ringattn_bench_make.restype = ctypes.c_void_p
        self.c.ringattn_bench_make.argtypes = [ctypes.c_int64] * 6 + [ctypes.c_int, ctypes.c_int, ctypes.c_int64,
                                                                      ctypes.c_double]
        self.c.ringattn_bench_error.restype = ctypes.c_char_p
        for name, n in (("forward", 7), ("backward", 11)):
            getattr(self.c, "ringattn_bench_" + name).argtypes = [ctypes.c_void_p] * n
        self.c.ringattn_bench_destroy.argtypes = [ctypes.c_void_p]

    def check(self, ok):
        if not ok:
            raise RuntimeError(self.c.ringattn_bench_error().decode())

    def make(self, b, sq, sk, h, g, d, dtype, causal, window):
        handle = self.c.ringattn_bench_make(b, sq, sk, h, g, d, DTYPES[dtype], causal, window, 0.0)
        self.check(handle)
        return handle

    def call(self, name, handle, *tensors):
        stream = torch.cuda.current_stream().cuda_stream
        pointers = [t.data_ptr() for t in tensors]
        self.check(getattr(self.c, "ringattn_bench_" + name)(handle, *pointers, stream) == 0)


def milliseconds(f, repeats):
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        f()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def exact_rows(q, k, v, causal, rows, head, kv_head):
    s = q[0, rows, head].double() @ k[0, :, kv_head].double().T / math.sqrt(q.shape[-1])
    if causal:
        s = s.masked_fill(torch.arange(k.shape[1], device="cuda")[None] > rows[:, None], -math.inf)
    return torch.softmax(s, -1) @ v[0, :, kv_head].double()


def cell(lib, b, s, h, g, d, causal, dtype=torch.bfloat16, backward=True):
    q, dout = [torch.randn(b, s, h, d, device="cuda", dtype=dtype) for _ in range(2)]
    k, v = [torch.randn(b, s, g, d, device="cuda", dtype=dtype) for _ in range(2)]
    out = torch.full_like(q, math.nan)
    lse = torch.full((b, h, s), math.nan, device="cuda")
    dq, dk, dv = [torch.full_like(t, math.nan) for t in (q, k, v)]
    handle = lib.make(b, s, s, h, g, d, dtype, int(causal), -1)
    forward = lambda: lib.call("forward", handle, q, k, v, out, lse)
    back = lambda: lib.call("backward", handle, q, k, v, out, lse, dout, dq, dk, dv)
    peer = [t.detach().transpose(1, 2).requires_grad_() for t in (q, k, v)]
    peer_forward = lambda: F.scaled_dot_product_attention(*peer, is_causal=causal, enable_gqa=h != g)
    row = dict(batch=b, seq=s, heads=h, kv_heads=g, dim=d, causal=causal, dtype=str(dtype))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        forward()
        peer_out = peer_forward()
        rows = torch.randint(0, s, (256,), device="cuda")
        truth = exact_rows(q, k, v, causal, rows, h - 1, g - 1)
        row["error"] = (out[0, rows, h - 1].double() - truth).abs().max().item()
        row["cudnn_error"] = (peer_out[0, h - 1, rows].double() - truth).abs().max().item()
        if backward:
            back()
            peer_grads = torch.autograd.grad(peer_out, peer, dout.transpose(1, 2), retain_graph=True)
            pairs = zip((dq, dk, dv), peer_grads)
            row["gradient_difference"] = max((a.float() - p.transpose(1, 2).float()).abs().max().item() for a, p in pairs)
        for _ in range(2):
            forward()
            peer_forward()
        turns = [(milliseconds(forward, 7), milliseconds(peer_forward, 7)) for _ in range(3)]
        row["forward_ms"], row["cudnn_forward_ms"] = [sorted(t)[1] for t in zip(*turns)]
        if backward:
            peer_back = lambda: torch.autograd.grad(peer_out, peer, dout.transpose(1, 2), retain_graph=True)
            turns = [(milliseconds(back, 5), milliseconds(peer_back, 5)) for _ in range(3)]
            row["backward_ms"], row["cudnn_backward_ms"] = [sorted(t)[1] for t in zip(*turns)]
    lib.c.ringattn_bench_destroy(handle)
    work = 4 * b * h * s * s * d * (0.5 if causal else 1) / 1e9
    text = f"D{d} H{h}/{g} {b}x{s} {'causal' if causal else 'full':6s} {str(dtype)[6:]:8s}"
    text += f" forward {work / row['forward_ms']:4.0f} TFLOP/s, cuDNN {work / row['cudnn_forward_ms']:4.0f}"
    if backward:
        text += f"; backward {2.5 * work / row['backward_ms']:4.0f}, cuDNN {2.5 * work / row['cudnn_backward_ms']:4.0f}"
    text += f"; error {row['error']:.1e}, cuDNN {row['cudnn_error']:.1e}"
    print(text, flush=True)
    return row


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    lib = Library(sys.argv[1])
    torch.manual_seed(int(time.time()))
    result = dict(device=torch.cuda.get_device_name(0), torch=torch.__version__, cudnn=torch.backends.cudnn.version(),
                  cuda=torch.version.cuda, date=time.strftime("%Y-%m-%d"), rows=[])
    for d in (64, 128, 256):
        for b, s in ((4, 4096), (1, 16384)):
            for causal in (True, False):
                result["rows"].append(cell(lib, b, s, 2048 // d, 2048 // d, d, causal))
    result["rows"].append(cell(lib, 1, 8192, 32, 8, 128, True))
    result["rows"].append(cell(lib, 4, 4096, 16, 16, 128, True, torch.float16))
    if len(sys.argv) > 2:
        with open(sys.argv[2], "w") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
