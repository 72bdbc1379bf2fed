"""How soon the place of a crashed proxy worker is filled: two workers under load, one after the other killed.

    python -m bench.proxy.crash [--times N]

Counted from the signal to the moment at which another process serves the Table on the same sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from bench.proxy import peers
from bench.proxy.world import backends, make_certificate
from mesh.dataplane.newcomer import STAND_BY_AFTER
from mesh.dataplane.worker import ProxyArguments
from mesh.dataplane.workers import Workers
from tests.parts.ports import free_port

WORKERS = 2


async def crash(times: int, folder: Path) -> list[float]:
    """Milliseconds of each."""
    ports = {kind: free_port() for kind in peers.KINDS}
    loop = asyncio.get_running_loop()
    found: list[float] = []
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(backends(folder))
        supervisor = Workers(folder / "ours", [ProxyArguments(node="n1", survive=False)] * WORKERS)
        stack.push_async_callback(supervisor.close)
        supervisor.publish(peers.our_table(ports, behind, make_certificate(folder)))
        await supervisor.start()
        await supervisor.serving()
        load = await asyncio.create_subprocess_exec(
            "wrk", "-t1", "-c16", f"-d{times * 2 + 60}s", f"http://127.0.0.1:{ports['http']}/small",
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        for number in range(times):
            await asyncio.sleep(STAND_BY_AFTER + 1)
            file = folder / "ours" / f"proxy-{number % WORKERS + 1}.pid"
            killed = int(file.read_text())
            began = loop.time()
            os.kill(killed, signal.SIGKILL)
            while file.read_text() == str(killed) or supervisor.waiting():  # noqa: ASYNC110 — a crash tells nobody
                await asyncio.sleep(0.001)
            found.append((loop.time() - began) * 1000)
            print(f"{found[-1]:.0f} ms", file=sys.stderr)
        load.terminate()
        await load.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mesh-crash-") as name:
        Path(name).chmod(0o755)  # nginx's workers read it as www-data
        found = asyncio.run(crash(options.times, Path(name)))
    print(f"crashed worker replaced, ms: {statistics.median(found):.0f} ({min(found):.0f}–{max(found):.0f})")


if __name__ == "__main__":
    main()
