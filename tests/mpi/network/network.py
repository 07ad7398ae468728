# SPDX-License-Identifier: Apache-2.0
"""Network namespaces joined by a switch in this process, which delays, loses and cuts.

Each namespace has one TAP interface `eth0`; its frames come here and go out again, late or not at
all. All above it is the kernel's own TCP. (`tc netem` does the same in the kernel, but many kernels
are built without it; this needs only TUN.)"""

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000


class Unavailable(Exception):
    """Why there can be no such network here."""


def _run(*words):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(words)}: {done.stderr.strip()}")


class Network:
    """`nodes` namespaces with the addresses 10.77.0.1, 10.77.0.2, ..."""

    def __init__(self, nodes, delay=0.0, loss=0.0, bytes_per_second=None, seed=1):
        if os.geteuid() != 0:
            raise Unavailable("needs root")
        self.delay = delay  # seconds, one way
        self.loss = loss  # share of frames
        self.bytes_per_second = bytes_per_second
        self.cut = set()  # nodes that are cut off
        self._random = random.Random(seed)
        self._names = [f"ringattn-{os.getpid()}-{i}" for i in range(nodes)]
        self._taps = []
        self._running = True
        try:
            for i, name in enumerate(self._names):
                _run("ip", "netns", "add", name)
                self._taps.append(self._join(i, name))
        except (OSError, Unavailable) as error:
            self.close()
            raise Unavailable(str(error)) from error
        self._thread = threading.Thread(target=self._switch, daemon=True)
        self._thread.start()

    def _join(self, i, name):
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        device = f"ra{os.getpid() % 100000}x{i}"
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TAP | _IFF_NO_PI))
        _run("ip", "link", "set", device, "netns", name)
        for words in (
            ("link", "set", device, "name", "eth0"),
            ("addr", "add", f"{self.address(i)}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _run("ip", "-n", name, *words)
        return tap

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    @staticmethod
    def address(i):
        return f"10.77.0.{i + 1}"

    def inside(self, i, *words):
        """The words that run a command on node i, which calls itself node<i>."""
        script = f'hostname node{i}; exec "$@"'
        return ["ip", "netns", "exec", self._names[i], "unshare", "--uts", "sh", "-c", script, "sh", *words]

    def write_agent(self, path):
        """A program that MPI launchers use as they use ssh: AGENT [-OPTION...] ADDRESS COMMAND..."""
        with open(path, "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\nwhile [ \"${1#-}\" != \"$1\" ]; do shift; done\n")
            file.write("address=$1; shift\ncase $address in\n")
            for i in range(len(self._names)):
                start = " ".join(self.inside(i)[:7])
                file.write(f"  {self.address(i)}) exec {start} -c \"hostname node{i}; $*\" ;;\n")
            file.write("esac\nexit 1\n")
        os.chmod(path, 0o755)

    def pids(self):
        """Of all processes on the nodes."""
        found = []
        for name in self._names:
            done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            found += [int(pid) for pid in done.stdout.split()]
        return found

    def close(self):
        self._running = False
        if hasattr(self, "_thread"):
            self._thread.join()
        for pid in self.pids():
            try:
                os.kill(pid, 9)
            except OSError:
                pass
        for tap in self._taps:
            os.close(tap)
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def _switch(self):
        """Frames wait in `late` until their time has come."""
        late = []
        free = [0.0] * len(self._taps)  # when a node's wire has sent what it had
        owner = {}  # MAC address -> node
        number = 0
        while self._running:
            pause = max(0.0, min(0.05, late[0][0] - time.monotonic())) if late else 0.05
            ready, _, _ = select.select(self._taps, [], [], pause)
            now = time.monotonic()
            for tap in ready:
                node = self._taps.index(tap)
                try:
                    frame = os.read(tap, 65536)
                except BlockingIOError:
                    continue
                owner[frame[6:12]] = node
                if node in self.cut or self._random.random() < self.loss:
                    continue
                if self.bytes_per_second:
                    free[node] = max(now, free[node]) + len(frame) / self.bytes_per_second
                number += 1
                heapq.heappush(late, (max(now, free[node]) + self.delay, number, node, frame))
            while late and late[0][0] <= now:
                _, _, node, frame = heapq.heappop(late)
                known = owner.get(frame[0:6])
                for to in range(len(self._taps)) if known is None else [known]:
                    if to == node or to in self.cut:
                        continue
                    try:
                        os.write(self._taps[to], frame)
                    except OSError:
                        pass  # a full queue loses frames, as wires do
