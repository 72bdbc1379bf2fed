"""The server's sockets: opened so that several processes share a port, and so that replies leave by the address
that was asked."""

from __future__ import annotations

import errno
import ipaddress
import socket

_IP_PKTINFO = 8  # linux/in.h; the socket module has it from Python 3.14 on


def parse_address(text: str, default_port: int = 53) -> tuple[str, int]:
    """`127.0.0.1`, `127.0.0.1:5353`, `[::1]:53`, `::1`, `:53` (all of IPv4).

    Raises:
        ValueError: if it is none of these.
    """
    host, port = text, str(default_port)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, port = text.split(":")
    try:
        number = int(port)
        address = str(ipaddress.ip_address(host or "0.0.0.0"))
    except ValueError:
        raise ValueError(f"not an address: {text!r} (as in 127.0.0.1:53 or [::1]:53)") from None
    if not 0 <= number <= 65535:
        raise ValueError(f"not a port: {text!r}")
    return address, number


def show_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def open_pair(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A UDP and a listening TCP socket on one address and port (0: any that is free for both).

    Raises:
        OSError: with what to do about it in its message.
    """
    for attempt in range(20):
        udp = _open(host, port, socket.SOCK_DGRAM)
        try:
            tcp = _open(host, udp.getsockname()[1], socket.SOCK_STREAM)
        except OSError as error:
            udp.close()
            if port == 0 and error.errno == errno.EADDRINUSE and attempt < 19:
                continue
            raise
        return udp, tcp
    raise AssertionError("unreachable")


def _open(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_DGRAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            if is_wildcard(host):
                _ask_for_local_address(sock)
        sock.bind((host, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(256)
    except OSError as error:
        sock.close()
        raise _listen_error(error, host, port) from error
    return sock


def is_wildcard(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified


def _ask_for_local_address(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def _listen_error(error: OSError, host: str, port: int) -> OSError:
    hints = {
        errno.EACCES: "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE, others do not",
        errno.EADDRINUSE: f"another server has this port (see `ss -lntup sport = :{port}`); choose another address",
        errno.EADDRNOTAVAIL: "this host has no such address",
    }
    text = hints.get(error.errno or 0, error.strerror or str(error))
    told = OSError(f"cannot listen on {show_address(host, port)}: {text}")
    told.errno = error.errno
    return told
