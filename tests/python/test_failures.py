# SPDX-License-Identifier: Apache-2.0
"""What goes wrong at run time is an error in Python, on every rank, and never the end of a process.
Each in a process of its own: XLA would end it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# XLA ends a process in which a device waits this long for another one.
FLAGS = "--xla_cpu_collective_call_terminate_timeout_seconds=120"


def start(script, *args):
    return subprocess.Popen(
        [sys.executable, "-P", HERE / script, *map(str, args)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"XLA_FLAGS": FLAGS},
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-4000:]
    return out


def test_a_failure_of_one_rank_is_one_of_all():
    assert "all ranks failed together" in finish(start("failing.py"))


def test_memory_that_is_not_there():
    assert "out of memory, then well again" in finish(start("no_memory.py"))


@pytest.mark.parametrize("count", [2])
def test_several_processes(count):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [start("processes.py", address, count, i) for i in range(count)]
    try:
        for process in processes:
            assert "right, and failed together" in finish(process)
    finally:
        for process in processes:
            process.kill()
