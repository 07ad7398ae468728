#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernels for Hopper and reads what became of them, without a GPU: fails if the compiler
serialises wgmma (C7510 to C7520), ignores register requests, or keeps values of the computing
warpgroups in local memory; prints instruction counts.

    kernels.py NVCC SOURCE_DIR BUILD_DIR FILE.cu...
"""
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from elf import instructions

# By pass and head_dim. Loads and stores of local memory between the first and the last wgmma: in the
# forward those of the beginning and of the rare raise of the reference, none in a step that goes as
# expected but for 256; in the backward two loads a step, and up to five before the first.
SPILLS = {"forward": {64: 16, 128: 4, 256: 24}, "backward": {64: 7, 128: 5},
          "query_gradient": {256: 0}, "key_gradient": {256: 0}}
# Registers that a launch may take: all of them over the threads of the block.
REGISTERS = {"forward": {64: 128, 128: 168, 256: 168}, "backward": {64: 128, 128: 128},
             "query_gradient": {256: 168}, "key_gradient": {256: 168}}


def check(nvcc, source, build, path):
    cubin = build / (path.stem + ".cubin")
    command = [nvcc, "-std=c++20", "--expt-relaxed-constexpr", "-O3", "-Xptxas", "-v", "-cubin",
               "-gencode=arch=compute_90a,code=sm_90a", f"-I{source}/src", f"-I{source}/include", str(path), "-o",
               str(cubin)]
    run = subprocess.run(command, capture_output=True, text=True)
    log = run.stdout + run.stderr
    faults = []
    if run.returncode != 0:
        return f"{path.stem}: {log}", ["does not compile"]
    faults += [f"the compiler says {code}" for code in sorted(set(re.findall(r"C75\d\d", log)))]
    direction, dim = re.fullmatch(r"sm90_([a-z_]+?)___.*_(\d+)_(?:true|false)", path.stem).groups()
    dim = int(dim)
    most_registers, most_spills = REGISTERS[direction][dim], SPILLS[direction][dim]
    registers = int(re.search(r"Used (\d+) registers", log).group(1))
    if registers > most_registers:
        faults.append(f"{registers} registers, at most {most_registers} expected")
    ops, = instructions(cubin).values()
    products = [i for i, op in enumerate(ops) if op == "HGMMA"]
    if not products:
        return f"{path.stem}: no wgmma", ["no wgmma"]
    inner = ops[products[0]:products[-1]]
    spills = inner.count("LDL") + inner.count("STL")
    if spills > most_spills:
        faults.append(f"{spills} accesses of local memory between wgmmas, at most {most_spills} expected")
    counts = {op: ops.count(op) for op in ("HGMMA", "MUFU")}
    line = f"{path.stem:45s} {len(ops):6d} instructions, {registers} registers at launch, "
    line += ", ".join(f"{n} {op}" for op, n in counts.items()) + f", {spills} spills between wgmmas"
    return line, faults


def main():
    nvcc, source, build = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    build.mkdir(parents=True, exist_ok=True)
    paths = [pathlib.Path(p) for p in sys.argv[4:]]
    failed = not paths
    with ThreadPoolExecutor(2) as pool:
        for line, faults in pool.map(lambda p: check(nvcc, source, build, p), paths):
            print(line, *(f"\n  FAULT: {f}" for f in faults), flush=True)
            failed = failed or bool(faults)
    sys.exit(failed)


if __name__ == "__main__":
    main()
