#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compiles the portable kernels for sm_80 and sm_90 and reads what became of them, without a GPU: fails if any
uses more local memory or registers than the tables say; prints instruction counts. Fails, too, if the
objects of the whole CUDA part take more than 60 MB.

    portable_kernels.py NVCC SOURCE_DIR BUILD_DIR OBJECT_DIR FILE.cu...
"""
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from elf import instructions

# By kernel and head_dim, of 16-bit types: two blocks of 128 threads, or one of 256, on a multiprocessor.
REGISTERS = {"forward": {64: 255, 128: 255, 256: 255},
             "query_gradient": {64: 255, 128: 255, 256: 232},
             "key_gradient": {64: 255, 128: 255, 256: 255}}
# Bytes of local memory, of none but: a number that is kept while padding is looked for; and what is kept while all
# warps meet, on sm_90, where this kernel only takes what Hopper's own do not.
LOCAL = {("key_gradient", 128, "sm_80"): 8, ("key_gradient", 128, "sm_90"): 48}
MOST_BYTES = 60 * 10**6


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout + done.stderr


def check(nvcc, source, build, path):
    """Lines and faults of the kernels of a file."""
    ptx = build / (path.stem + ".ptx")
    run(nvcc, "-std=c++20", "--expt-relaxed-constexpr", "--extended-lambda", "-O3", "-ptx", "-arch=compute_80",
        f"-I{source}/src", f"-I{source}/include", str(path), "-o", str(ptx))
    dim = int(path.stem.split("_")[-1])
    lines, faults = [], []
    for architecture in ("sm_80", "sm_90"):
        cubin = build / f"{path.stem}_{architecture}.cubin"
        log = run(str(pathlib.Path(nvcc).parent / "ptxas"), "-v", f"-arch={architecture}", str(ptx), "-o", str(cubin))
        kernels = instructions(cubin)
        for part in log.split("Compiling entry function '")[1:]:
            mangled = part[:part.index("'")]
            name = re.search(r"portable\d+(\w+?)_kernel", mangled).group(1)
            title = f"{name} {dim} {architecture}"
            stack = int(re.search(r"(\d+) bytes stack frame", part).group(1))
            registers = int(re.search(r"Used (\d+) registers", part).group(1))
            ops = kernels[mangled]
            local = ops.count("LDL") + ops.count("STL")
            if stack > LOCAL.get((name, dim, architecture), 0) or (local > 0 and stack == 0):
                faults.append(f"{title}: {stack} bytes of local memory, {local} accesses")
            if registers > REGISTERS[name][dim]:
                faults.append(f"{title}: {registers} registers, at most {REGISTERS[name][dim]} expected")
            if not ops.count("HMMA"):
                faults.append(f"{title}: no matrix unit is used")
            counts = ", ".join(f"{ops.count(op)} {op}" for op in ("HMMA", "LDSM", "MUFU"))
            lines.append(f"{title:28s} {registers} registers, {len(ops)} instructions: {counts}")
    return lines, faults


def main():
    nvcc, (source, build, objects) = sys.argv[1], map(pathlib.Path, sys.argv[2:5])
    build.mkdir(parents=True, exist_ok=True)
    paths = [pathlib.Path(p) for p in sys.argv[5:]]
    faults = [] if paths else ["no file to compile"]
    with ThreadPoolExecutor(2) as pool:
        for lines, found in pool.map(lambda p: check(nvcc, source, build, p), paths):
            print(*lines, sep="\n", flush=True)
            faults += found
    sizes = [p.stat().st_size for p in objects.rglob("*.cu.o")]
    print(f"{len(sizes)} objects of nvcc, {sum(sizes) / 1e6:.1f} MB")
    if not sizes or sum(sizes) > MOST_BYTES:
        faults.append(f"objects of 1 to {MOST_BYTES} bytes expected in {objects}")
    print(*(f"FAULT: {f}" for f in faults), sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
