"""A replica for the end-to-end tests: says who it is, and can be told to misbehave by its environment.

HELLO: what it says first. START_DELAY: seconds before it listens. UNREADY_FILE: while it exists, /healthz is 503.
`/slow` takes 0.3 s, `/eat` all the memory that the replica may have.
"""

import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MEALS: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(0.3)
        if self.path == "/eat":
            MEALS.append(b"x" * 2**28)
        unready = self.path == "/healthz" and Path(os.environ.get("UNREADY_FILE", "/nonexistent")).exists()
        body = f"{os.environ.get('HELLO', 'hello')} from {os.environ.get('MESH_REPLICA', '?')}\n".encode()
        self.send_response(503 if unready else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        if self.path != "/healthz":
            print(self.path, flush=True)


def main() -> None:
    time.sleep(float(os.environ.get("START_DELAY", "0")))
    ThreadingHTTPServer.request_queue_size = 512  # what it comes with, 5, is less than any server has
    server = ThreadingHTTPServer((os.environ.get("HOST", "0.0.0.0"), int(os.environ["PORT_HTTP"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("listening", file=sys.stderr, flush=True)
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
