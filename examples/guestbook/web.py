"""The guestbook's web front end: shows the entries, takes new ones, and says which replica answered.

    GET /          the page               POST /entries   a new entry (form field `text`)
    GET /api       the same as JSON       GET /healthz    200 while it serves

It keeps nothing itself, so any replica may answer. After SIGTERM it ends the requests it has, then exits.

Environment: GREETING, REDIS (`name:port`, default `redis.svc.cluster:6379`); the mesh sets PORT_HTTP, HOST,
MESH_REPLICA and, for programs outside containers, MESH_DNS.
"""

import html
import json
import os
import signal
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

from guestbook.redis import Redis, RedisError

LONGEST_ENTRY = 280
SHOWN = 20

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{greeting}</title>
<style>body {{ font: 1.1rem system-ui; max-width: 36rem; margin: 3rem auto }} li {{ margin: .4rem 0 }}
small {{ color: #777 }} input {{ font: inherit; width: 70% }} button {{ font: inherit }}</style>
<h1>{greeting}</h1>
<form method="post" action="/entries">
<input name="text" maxlength="280" required autofocus> <button>Sign</button></form>
<ul>{entries}</ul>
<small>answered by {replica}</small>
</html>
"""


class Guestbook:
    """The entries, newest first, in a Redis list."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def entries(self) -> list[str]:
        found = self._redis.command("LRANGE", "entries", 0, SHOWN - 1)
        return [entry.decode(errors="replace") for entry in found or []]

    def sign(self, text: str) -> None:
        self._redis.command("LPUSH", "entries", text)
        self._redis.command("LTRIM", "entries", 0, 999)


class Handler(BaseHTTPRequestHandler):
    """One connection; `server` is the `Server` below."""

    server: "Server"
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave in one packet
    timeout = 75  # seconds without a request, after which a kept-alive connection is closed

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer("text/plain", "ok\n")
        elif self.path in ("/", "/api"):
            self._show()
        else:
            self._answer("text/plain", "there is nothing here\n", HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != "/entries" or not length.isdecimal() or int(length) > 16 * LONGEST_ENTRY:
            self.close_connection = True
            return self._answer("text/plain", "post a form to /entries\n", HTTPStatus.BAD_REQUEST)
        form = parse_qs(self.rfile.read(int(length)).decode(errors="replace"))
        text = form.get("text", [""])[0].strip()[:LONGEST_ENTRY]
        if not text:
            return self._answer("text/plain", "the form needs a field `text`\n", HTTPStatus.BAD_REQUEST)
        try:
            self.server.guestbook.sign(text)
        except RedisError as error:
            return self._unavailable(error)
        return self._answer("text/plain", "signed\n", HTTPStatus.SEE_OTHER, {"Location": "/"})

    def _show(self) -> None:
        try:
            entries = self.server.guestbook.entries()
        except RedisError as error:
            return self._unavailable(error)
        greeting, replica = self.server.greeting, self.server.replica
        if self.path == "/api":
            body = {"greeting": greeting, "replica": replica, "entries": entries}
            return self._answer("application/json", json.dumps(body) + "\n")
        items = "".join(f"<li>{html.escape(entry)}</li>" for entry in entries)
        page = PAGE.format(greeting=html.escape(greeting), replica=html.escape(replica), entries=items)
        return self._answer("text/html; charset=utf-8", page)

    def _unavailable(self, error: RedisError) -> None:
        self._answer("text/plain", f"the entries are not to be had: {error}\n", HTTPStatus.SERVICE_UNAVAILABLE)

    def _answer(
        self, kind: str, text: str, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None
    ) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        if self.path != "/healthz":
            super().log_request(code, size)  # type: ignore[arg-type]


class Server(ThreadingHTTPServer):
    """A thread for each connection; `stop` lets the requests under way end."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], guestbook: Guestbook, *, greeting: str, replica: str) -> None:
        super().__init__(address, Handler)
        self.guestbook = guestbook
        self.greeting = greeting
        self.replica = replica
        self._open: set[socket.socket] = set()

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._open.discard(request)
        super().shutdown_request(request)

    def stop(self) -> None:
        """Accepts no more, ends every connection after the request it is in, and returns when all have ended."""
        self.shutdown()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RD)  # an idle connection ends, a busy one once it has answered
            except OSError:
                continue  # the other side was quicker
        self.server_close()


def main() -> None:
    name, _, port = os.environ.get("REDIS", "redis.svc.cluster:6379").rpartition(":")
    server = Server(
        (os.environ.get("HOST", "0.0.0.0"), int(os.environ.get("PORT_HTTP", "8080"))),
        Guestbook(Redis(name, int(port))),
        greeting=os.environ.get("GREETING", "Hello"),
        replica=os.environ.get("MESH_REPLICA", socket.gethostname()),
    )
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    threading.Thread(target=server.serve_forever, name="accept", kwargs={"poll_interval": 0.05}).start()
    print(f"listening on {server.server_address[0]!s}:{server.server_address[1]}", file=sys.stderr, flush=True)
    stopping.wait()
    server.stop()


if __name__ == "__main__":
    main()
