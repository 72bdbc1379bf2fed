"""A slow wire for one host: frames between its cable and the switch wait for some milliseconds each way.

    python -m tests.lab.wire HOST MILLISECONDS      (until SIGTERM, which puts the straight cable back)

In user space, over two TAPs, because the kernel of a small machine may have no netem.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import struct
import sys
import time
from collections import deque
from contextlib import suppress

from tests.lab.switch import SPACE
from tests.lab.system import run

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
FRAME = 65536
MAX_WAITING = 10_000
"""Frames on their way; more are lost, as on any wire."""


def main(host: str, milliseconds: float) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{SPACE}", encoding="ascii") as space:
        if libc.setns(space.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {SPACE}")
    near, far, bridge = f"wa-{host}", f"wb-{host}", f"br-{host}"
    ends = (_tap(near), _tap(far))
    run("ip", "link", "add", bridge, "type", "bridge", "forward_delay", "0")
    run("ip", "link", "set", bridge, "up")
    run("ip", "link", "set", near, "master", bridge, "up")
    run("ip", "link", "set", far, "master", "br0", "up")
    run("ip", "link", "set", host, "master", bridge)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        carry(ends, milliseconds / 1000)
    finally:
        run("ip", "link", "set", host, "master", "br0")
        run("ip", "link", "del", bridge, check=False)


def _tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def carry(ends: tuple[int, int], delay: float) -> None:
    """Each frame that comes in at one end goes out at the other `delay` seconds later."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, out, frame = waiting.popleft()
            with suppress(OSError):  # the other end is down: the frame is lost
                os.write(out, frame)
        timeout = max(0.0, waiting[0][0] - now) * 1000 if waiting else None
        for end, _ in poll.poll(timeout):
            with suppress(BlockingIOError):
                while len(waiting) < MAX_WAITING:
                    frame = os.read(end, FRAME)
                    waiting.append((time.monotonic() + delay, ends[end == ends[0]], frame))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
