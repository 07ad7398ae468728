#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times ringattn on one GPU beside PyTorch's cuDNN attention, in one process.

    python3 bench/gpu/bench.py build/dev/bench/libringattn_gpu_bench.so [results.json] [--forward-only]

Random normal inputs; medians over CUDA events, the two taken in turns, of calls by themselves (what the host
needs to launch them counts) and of calls in a queue ("queued"); sampled rows are compared with float64 first,
beside cuDNN's own error, and a second run must give the same bits. FLOPs: 4 B H S^2 D
forward, 2.5 times that backward, half of it for causal. Windows and caps, which cuDNN's interface in PyTorch
does not take, are timed alone; so is a hop in the middle of a ring, beside the same work without state.
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
                                                                      ctypes.c_double, ctypes.c_int, ctypes.c_int]
        self.c.ringattn_bench_segments.argtypes = [ctypes.c_void_p] * 2
        self.c.ringattn_bench_segments.restype = None
        self.c.ringattn_bench_error.restype = ctypes.c_char_p
        for name, n in (("forward", 7), ("backward", 11)):
            getattr(self.c, "ringattn_bench_" + name).argtypes = [ctypes.c_void_p] * n
        self.c.ringattn_bench_destroy.argtypes = [ctypes.c_void_p]
        self.c.ringattn_bench_destroy.restype = None
        self.c.ringattn_bench_make_hop.restype = ctypes.c_void_p
        self.c.ringattn_bench_make_hop.argtypes = [ctypes.c_int64] * 4 + [ctypes.c_int]
        self.c.ringattn_bench_hop.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int] * 2 + [ctypes.c_void_p]
        self.c.ringattn_bench_destroy_hop.argtypes = [ctypes.c_void_p]
        self.c.ringattn_bench_destroy_hop.restype = None

    def check(self, ok):
        if not ok:
            raise RuntimeError(self.c.ringattn_bench_error().decode())

    def make(self, b, sq, sk, h, g, d, dtype, causal, window=-1, cap=0.0, deterministic=False,
             segments=False):
        handle = self.c.ringattn_bench_make(b, sq, sk, h, g, d, DTYPES[dtype], causal, window, cap, deterministic,
                                            segments)
        self.check(handle)
        return handle

    def prepare(self, name, handle, *tensors):
        """A call of the C function: what Python does to its arguments is done once."""
        f = getattr(self.c, "ringattn_bench_" + name)
        args = [handle, *[t.data_ptr() for t in tensors], torch.cuda.current_stream().cuda_stream]
        args = [ctypes.c_void_p(a) for a in args]
        return lambda: self.check(f(*args) == 0)

    def call(self, name, handle, *tensors):
        self.prepare(name, handle, *tensors)()


def milliseconds(f):
    """The median of spaced launches: at least 10, for a tenth of a second."""
    times = []
    stop = time.time() + 0.1
    while len(times) < 10 or (time.time() < stop and len(times) < 60):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        f()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def queued(f, about):
    """The median of launches that the host is ahead of, as in training: for a tenth of a second if they take `about`
    milliseconds, 5 to 20; before each of them other work has filled L2."""
    other = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    count = max(5, min(20, int(100 / about)))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for begin, end in events:
        other.zero_()
        begin.record()
        f()
        end.record()
    torch.cuda.synchronize()
    return sorted(begin.elapsed_time(end) for begin, end in events)[len(events) // 2]


def in_turns(row, name, f, peer):
    """Puts the medians of three turns of both into the row."""
    keys = f"{name}_ms", f"cudnn_{name}_ms"
    turns = [[milliseconds(g) for g in (f, peer)] for _ in range(3)]
    row |= {key: sorted(times)[1] for key, times in zip(keys, zip(*turns))}
    turns = [[queued(g, row[key]) for g, key in zip((f, peer), keys)] for _ in range(3)]
    row |= {f"queued_{key}": sorted(times)[1] for key, times in zip(keys, zip(*turns))}


def ratio(row, name):
    return row[f"cudnn_{name}_ms"] / row[f"{name}_ms"], row[f"queued_cudnn_{name}_ms"] / row[f"queued_{name}_ms"]


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
    forward = lib.prepare("forward", handle, q, k, v, out, lse)
    back = lib.prepare("backward", handle, q, k, v, out, lse, dout, dq, dk, dv)
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
        first = out.clone()
        out.fill_(math.nan)
        forward()
        row["same_bits"] = torch.equal(first, out)
        for _ in range(2):
            forward()
            peer_forward()
        in_turns(row, "forward", forward, peer_forward)
        if backward:
            peer_back = lambda: torch.autograd.grad(peer_out, peer, dout.transpose(1, 2), retain_graph=True)
            in_turns(row, "backward", back, peer_back)
    lib.c.ringattn_bench_destroy(handle)
    work = 4 * b * h * s * s * d * (0.5 if causal else 1) / 1e9
    text = f"D{d} H{h}/{g} {b}x{s} {'causal' if causal else 'full':6s} {str(dtype)[6:]:8s}"
    text += f" forward {work / row['forward_ms']:4.0f} TFLOP/s, cuDNN {work / row['cudnn_forward_ms']:4.0f}"
    text += " (%.2fx, queued %.2fx)" % ratio(row, "forward")
    if backward:
        text += f"; backward {2.5 * work / row['backward_ms']:4.0f}, cuDNN {2.5 * work / row['cudnn_backward_ms']:4.0f}"
        text += " (%.2fx, queued %.2fx)" % ratio(row, "backward")
    text += f"; error {row['error']:.1e}, cuDNN {row['cudnn_error']:.1e}"
    print(text if row["same_bits"] else text + "; OTHER BITS IN A SECOND RUN", flush=True)
    return row


def alone(lib, b, s, h, d, causal, documents=0, backward=True, **options):
    """Both passes without a peer: windows, caps, packed documents, additions in order."""
    q, k, v, dout = [torch.randn(b, s, h, d, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    out, dq, dk, dv = [torch.empty_like(q) for _ in range(4)]
    lse = torch.empty(b, h, s, device="cuda")
    handle = lib.make(b, s, s, h, h, d, torch.bfloat16, int(causal), segments=documents > 0, **options)
    row = dict(batch=b, seq=s, heads=h, dim=d, causal=causal, documents=documents, **options)
    if documents:
        ends = torch.cat([torch.randperm(s - 1)[:documents - 1].sort().values + 1, torch.tensor([s])])
        ids = torch.searchsorted(ends, torch.arange(s), right=True).int().cuda().expand(b, s).contiguous()
        lengths = torch.diff(ends, prepend=torch.tensor([0])).double()
        row["visible"] = ((lengths * (lengths + 1) / 2).sum() / (s * (s + 1) / 2)).item() if causal else ((lengths**2).sum() / s**2).item()
        first, last = ids[0, ::128], ids[0, 127::128]
        tiles = (first[:, None] <= last[None]) & (last[:, None] >= first[None])
        every = torch.ones_like(tiles)
        row["visible_tiles"] = ((tiles.tril() if causal else tiles).sum() / (every.tril() if causal else every).sum()).item()
        lib.c.ringattn_bench_segments(handle, ids.data_ptr())
    forward = lib.prepare("forward", handle, q, k, v, out, lse)
    back = lib.prepare("backward", handle, q, k, v, out, lse, dout, dq, dk, dv)
    forward()
    row["forward_ms"] = sorted(milliseconds(forward) for _ in range(3))[1]
    text = f"D{d} H{h} {b}x{s} {'causal' if causal else 'full'} {options} documents {documents}: forward {row['forward_ms']:.3f} ms"
    if backward:
        back()
        row["backward_ms"] = sorted(milliseconds(back) for _ in range(3))[1]
        text += f", backward {row['backward_ms']:.3f} ms"
    if documents:
        text += f"; {row['visible']:.3f} of the pairs and {row['visible_tiles']:.3f} of the tiles of 128 x 128 visible"
    lib.c.ringattn_bench_destroy(handle)
    print(text, flush=True)
    return row


def hop(lib, s, h, g, d, causal):
    """A hop with state in and out, and the same work without state, in turns."""
    q, out = [torch.randn(1, s, h, d, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    k, v = [torch.randn(1, s, g, d, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    lse = torch.empty(1, h, s, device="cuda")
    handle = lib.c.ringattn_bench_make_hop(s, h, g, d, int(causal))
    lib.check(handle)

    def step(first, last):
        stream = torch.cuda.current_stream().cuda_stream
        lib.check(lib.c.ringattn_bench_hop(handle, *[t.data_ptr() for t in (q, k, v, out, lse)], first, last, stream) == 0)

    step(1, 0)  # a state for those that read one
    for _ in range(3):
        step(0, 0)
        step(1, 1)
    turns = [(milliseconds(lambda: step(0, 0)), milliseconds(lambda: step(1, 1))) for _ in range(7)]
    lib.c.ringattn_bench_destroy_hop(handle)
    row = dict(seq=s, heads=h, kv_heads=g, dim=d, causal=causal)
    row["middle_ms"], row["without_state_ms"] = [sorted(t)[len(t) // 2] for t in zip(*turns)]
    print(f"D{d} H{h}/{g} hop of {s} {'causal' if causal else 'full'}: middle {row['middle_ms']:.3f} ms, without state "
          f"{row['without_state_ms']:.3f} ms ({row['middle_ms'] / row['without_state_ms']:.3f}x)", flush=True)
    return row


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    lib = Library(sys.argv[1])
    torch.manual_seed(int(time.time()))
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    gemm = 2 * 8192**3 / 1e9 / milliseconds(lambda: a @ a)
    del a
    print(f"{torch.cuda.get_device_name(0)}: bf16 product of 8192 x 8192 at {gemm:.0f} TFLOP/s", flush=True)
    result = dict(device=torch.cuda.get_device_name(0), gemm_tflops=gemm, torch=torch.__version__, cudnn=torch.backends.cudnn.version(),
                  cuda=torch.version.cuda, date=time.strftime("%Y-%m-%d"), rows=[])
    backward = "--forward-only" not in sys.argv
    for d in (64, 128, 256):
        for b, s in ((16, 1024), (4, 4096), (2, 8192), (1, 16384)):
            for causal in (True, False):
                result["rows"].append(cell(lib, b, s, 2048 // d, 2048 // d, d, causal, backward=backward))
    for s in (8192, 32768):
        for causal in (True, False):
            result["rows"].append(cell(lib, 1, s, 32, 8, 128, causal, backward=backward))
    for direction in ("forward", "backward")[:1 + backward]:
        for queue, ratios in zip(("", "queued_"), zip(*[ratio(row, direction) for row in result["rows"]])):
            mean = math.exp(sum(math.log(r) for r in ratios) / len(ratios))
            result[f"{queue}{direction}_geometric_mean"] = mean
            print(f"{queue}{direction}: geometric mean {mean:.3f}x cuDNN, least {min(ratios):.3f}x", flush=True)
    result["rows"].append(cell(lib, 4, 4096, 16, 16, 128, True, torch.float16, backward))
    result["rows"].append(cell(lib, 4, 4096, 32, 32, 64, False, torch.float16, backward))
    result["alone"] = []
    add = lambda *shape, **options: result["alone"].append(alone(lib, *shape, backward=backward, **options))
    for h, d in ((16, 128), (32, 64), (8, 256)):
        for causal in (True, False):
            add(1, 16384, h, d, causal)
            if backward:
                add(1, 16384, h, d, causal, deterministic=True)
                add(4, 4096, h, d, causal)
                add(4, 4096, h, d, causal, deterministic=True)
        add(1, 16384, h, d, True, window=1024)
        if backward:
            add(1, 16384, h, d, True, window=1024, deterministic=True)
            add(16, 1024, h, d, True)
            add(16, 1024, h, d, True, deterministic=True)
        add(1, 16384, h, d, True, documents=8)
        add(1, 16384, h, d, True, cap=30.0)
    for causal in (False, True):
        for cap in (0.0, 30.0):
            add(2, 8192, 16, 128, causal, cap=cap)
    result["hops"] = [hop(lib, s, 32, 8, 128, causal) for s, causal in ((8192, False), (8192, True), (4096, False), (4096, True))]
    if len(sys.argv) > 2 and not sys.argv[2].startswith("--"):
        with open(sys.argv[2], "w") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
