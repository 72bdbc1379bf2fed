"""Hunts for bytes that stop, confuse or swell the DNS server, guided by coverage (atheris; `pip install atheris`).

    python -m bench.dns.fuzz parser|socket [--seconds S] [--corpus FOLDER]
    python -m bench.dns.fuzz merge --corpus FOLDER      writes tests/dns_server/corpus.txt anew

`parser`: all that reads what comes from the network, in this process. `socket`: a server of its own gets the bytes by
UDP and TCP, must go on answering, and must not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnslib import DNSRecord

SEEDS = [
    *(bytes(DNSRecord.question(f"{name}.svc.cluster", qtype).pack()) for name, qtype in (
        ("web", "A"), ("redis", "AAAA"), ("_http._tcp.web", "SRV"), ("web", "TXT"), ("web", "ANY"), ("nothing", "A"))),
    bytes(DNSRecord.question("7.0.96.10.in-addr.arpa", "PTR").pack()),
    b"\0\1\1\0\0\1\0\0\0\0\0\1\3web\3svc\7cluster\0\0\1\0\1\0\0\x29\x04\xd0\0\0\x80\0\0\x0c\0\x0a\0\x0812345678",
    b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1",
    b"\0\1\x81\x80\0\1\0\2\0\0\0\0\3www\7example\3com\0\0\1\0\1" + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\1" * 2,
]  # fmt: skip
MOST_GROWTH = 30.0
"""MiB that the server may have more in the end: its bounded caches fill."""


def fuzz(one: Callable[[bytes], None], seconds: int, corpus: Path, *more: str) -> None:
    """Runs until the time is over, or exits with the input that failed."""
    atheris: Any = importlib.import_module("atheris")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", "-max_len=700", "-timeout=10", f"-artifact_prefix={corpus}/", *more]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def parser(seconds: int, corpus: Path) -> None:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["mesh.dns"]):
        hostile: Any = importlib.import_module("tests.dns_server.hostile")
    fuzz(hostile.meet, seconds, corpus)


def through_sockets(seconds: int, corpus: Path) -> None:
    """The server runs in a thread here, so that coverage of it guides the fuzzer too."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["mesh.dns"]):
        server: Any = importlib.import_module("mesh.dns.server")
        zones: Any = importlib.import_module("tests.dns_server.zones")
    address = _serve(server.DnsServer, zones.guestbook())
    control = bytes(DNSRecord.question("web.svc.cluster").pack())
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.settimeout(5)
    udp.connect(address)
    begun = [0, 0.0]

    def one(data: bytes) -> None:
        udp.send(data)
        with socket.create_connection(address) as tcp:
            tcp.sendall(data)  # as it is: its first bytes are a length
            tcp.sendall(len(control).to_bytes(2, "big") + control)
        udp.send(control)
        while udp.recv(4096)[:2] != control[:2]:
            pass
        begun[0] += 1
        if begun[0] == 2000:
            begun[1] = _resident_mib()
        elif begun[0] > 2000 and begun[0] % 1000 == 0:
            assert _resident_mib() < begun[1] + MOST_GROWTH, "the server grows"

    fuzz(one, seconds, corpus, "-rss_limit_mb=600")


def _serve(make_server: Any, table: Any) -> tuple[str, int]:
    started = threading.Event()
    addresses: list[tuple[str, int]] = []

    async def serve() -> None:
        server = make_server(["127.0.0.1:0"], forward=False)
        await server.start()
        await server.update(table, None)
        addresses.extend(server.addresses)
        started.set()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    started.wait()
    return addresses[0]


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def merge(corpus: Path) -> None:
    """Keeps of a corpus what takes a way of its own, as one text file."""
    hostile: Any = importlib.import_module("tests.dns_server.hostile")
    found = sorted({file.read_bytes() for file in corpus.iterdir() if file.stat().st_size <= 300}, key=len)
    hostile.CORPUS.write_text("".join(f"{data.hex()}\n" for data in found if data))
    print(f"{hostile.CORPUS}: {len(found)} inputs")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("what", choices=["parser", "socket", "merge"])
    arguments.add_argument("--seconds", type=int, default=60)
    arguments.add_argument("--corpus", type=Path, help="inputs found so far; a folder of its own otherwise")
    options = arguments.parse_args()
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="mesh-fuzz-"))
    if options.what == "merge":
        merge(corpus)
    elif options.what == "parser":
        parser(options.seconds, corpus)
    else:
        through_sockets(options.seconds, corpus)


if __name__ == "__main__":
    main()
