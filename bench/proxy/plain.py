"""The proxy that anyone would write with aiohttp: a handler, a ClientSession, no policy. What ours must leave behind.

python -m bench.proxy.plain LISTEN TARGET [TARGET …]      (ports on 127.0.0.1)
"""

from __future__ import annotations

import itertools
import sys

import uvloop
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web

DROPPED = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


def main() -> None:
    listen, *targets = map(int, sys.argv[1:])
    turn = itertools.cycle([f"http://127.0.0.1:{port}" for port in targets])
    session: ClientSession

    async def with_session(_: web.Application) -> None:
        nonlocal session
        session = ClientSession(
            connector=TCPConnector(limit=0), auto_decompress=False, cookie_jar=DummyCookieJar(), raise_for_status=False
        )

    async def handle(request: web.Request) -> web.StreamResponse:
        kept = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED}
        kept["X-Forwarded-For"] = request.remote or ""
        body = request.content if request.can_read_body else None
        async with session.request(request.method, next(turn) + request.raw_path, headers=kept, data=body) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in DROPPED}
            response = web.StreamResponse(status=answer.status, headers=kept)
            response.content_length = answer.content_length
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    app = web.Application()
    app.on_startup.append(with_session)
    app.router.add_route("*", "/{path:.*}", handle)
    web.run_app(app, host="127.0.0.1", port=listen, print=None, access_log=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main()
