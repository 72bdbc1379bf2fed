"""A service's name to an address: by the system's resolver, or by asking the mesh's DNS itself.

Containers need nothing of this: their resolver is the mesh's. A program that runs outside a container
finds the mesh's DNS in MESH_DNS (`address:port`), and asks it one A query (RFC 1035).
"""

import os
import secrets
import socket
import struct

ATTEMPTS, TIMEOUT = 3, 0.5
A, IN = 1, 1


def resolve(name: str) -> str:
    """The first IPv4 address of `name`. Raises OSError."""
    server = os.environ.get("MESH_DNS")
    if not server:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
        return str(found[0][4][0])
    address, _, port = server.rpartition(":")
    query = secrets.token_bytes(2) + struct.pack("!5H", 0x0100, 1, 0, 0, 0) + question(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(TIMEOUT)
        udp.connect((address, int(port)))
        for _ in range(ATTEMPTS):
            udp.send(query)
            try:
                return first_address(udp.recv(4096), query)
            except TimeoutError:
                continue
    raise TimeoutError(f"no answer from {server} for {name}")


def question(name: str) -> bytes:
    labels = name.rstrip(".").encode("idna").split(b".")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0" + struct.pack("!2H", A, IN)


def first_address(answer: bytes, query: bytes) -> str:
    """The address of the first A record in `answer`."""
    identity, flags, _, records = struct.unpack_from("!4H", answer)
    if identity.to_bytes(2, "big") != query[:2]:
        raise OSError("the answer belongs to another question")
    here = len(query)  # the answer repeats the question
    for _ in range(records if not flags & 0xF else 0):
        while answer[here] and answer[here] < 0xC0:  # a name in full …
            here += 1 + answer[here]
        here += 2 if answer[here] else 1  # … or ending in a pointer
        kind, _, _, length = struct.unpack_from("!HHIH", answer, here)
        here += 10
        if kind == A:
            return socket.inet_ntoa(answer[here : here + 4])
        here += length
    raise OSError(f"the name has no address (response code {flags & 0xF})")
