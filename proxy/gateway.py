"""What listens for routes: plain HTTP, TLS that ends here, TLS that goes on unopened by its name, or both kinds."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator, Mapping
from functools import partial
from typing import cast

import msgspec

from mesh.proxy.arrival import by_server_name, expect_proxy_header
from mesh.proxy.context import Context
from mesh.proxy.l4 import serve_tcp
from mesh.proxy.l7 import ClientConnection, Site
from mesh.proxy.listener import Address, Open, Serve, Wanted, serve_protocol, serve_sockets, take_over
from mesh.proxy.site import Backends, RouteSite, Subset
from mesh.proxy.tls import Certificates, Keyring
from mesh.table import Rule, TableRoute, TableTls


def open_http(site: Site, context: Context, *, proxied: bool, tls: ssl.SSLContext | None = None) -> Open:
    """Opens a listener for HTTP. `proxied`: its connections begin with a PROXY protocol header."""
    if proxied:
        return serve_sockets(expect_proxy_header(serve_http(site, context, tls), context, site.stats.failed))
    return serve_protocol(partial(_speak_http, site, context), tls)


def _speak_http(site: Site, context: Context, address: str | None = None) -> asyncio.BaseProtocol:
    return cast(asyncio.BaseProtocol, ClientConnection(site, context, address))


def serve_http(site: Site, context: Context, tls: ssl.SSLContext | None) -> Serve:
    """Takes over single connections for HTTP."""

    def serve(client: socket.socket, address: Address) -> None:
        protocol = partial(_speak_http, site, context, address[0])
        context.tasks.spawn(take_over(client, protocol, tls), "accept")

    return serve


class Gateway:
    """The routes of one address. They may change while connections are open."""

    def __init__(self, address: str, context: Context) -> None:
        self._address = address
        self._context = context
        self._certificates = Certificates()
        self._routes: Mapping[str, TableRoute] = {}
        self.site = RouteSite()  # for requests
        self._passing = RouteSite()  # for TLS that is not opened
        self._faults: list[str] = []

    def update(self, routes: Mapping[str, TableRoute]) -> None:
        """Serves these from now on, by name."""
        self._routes = routes
        passing = {name: route for name, route in routes.items() if route.tls == "passthrough"}
        self.site.update({name: route for name, route in routes.items() if name not in passing})
        self._passing.update({name: _named_only(route) for name, route in passing.items()})
        self._faults = [*self._odd_ones()]

    def _odd_ones(self) -> Iterator[str]:
        """What of the routes cannot be served beside the others, or not at all."""
        for name, route in self._routes.items():
            if route.tls == "passthrough" and _named_only(route) != route:
                yield f"route {name}: only `host` and `to` of a rule can be told where TLS passes through"
            if route.tls is None and self._names_decide and not self._ends_tls:
                yield f"route {name}: {self._address} is for TLS that passes through; give it `tls` or another `listen`"
            if self._proxied and not route.proxy_protocol.accept:
                yield f"route {name}: others of {self._address} have `proxy_protocol.accept`, which holds for it too"

    @property
    def _ends_tls(self) -> bool:
        """Of the routes here, one with a certificate suffices: the others are asked for in the same connections."""
        return any(isinstance(route.tls, TableTls) for route in self._routes.values())

    @property
    def _names_decide(self) -> bool:
        return any(route.tls == "passthrough" for route in self._routes.values())

    @property
    def _proxied(self) -> bool:
        return any(route.proxy_protocol.accept for route in self._routes.values())

    def show(self, keyring: Keyring) -> None:
        """From now on these certificates."""
        self._certificates.follow(keyring.of(sorted(self._routes)))

    def follow(self, backends: Backends) -> None:
        """The services of the Table have changed."""
        self.site.follow(backends)
        self._passing.follow(backends)

    @property
    def subsets(self) -> Iterator[Subset]:
        yield from self.site.subsets
        yield from self._passing.subsets

    def problems(self) -> list[str]:
        return self.site.problems() + self._passing.problems() + self._faults

    def wanted(self) -> Wanted:
        """How to listen."""
        tls = self._certificates.context if self._ends_tls else None
        kind = ("proxied " if self._proxied else "") + ("https" if tls else "http")
        if not self._names_decide:
            return Wanted(self._address, kind, open_http(self.site, self._context, proxied=self._proxied, tls=tls))
        serve = by_server_name(self._choose, self._context, self.site.stats.failed)
        if self._proxied:
            serve = expect_proxy_header(serve, self._context, self.site.stats.failed)
        return Wanted(self._address, f"passthrough {kind}", serve_sockets(serve))

    def _choose(self, name: str) -> Serve | None:
        """Who serves a TLS connection to this name."""
        if (passage := self._passing.passage(name)) is not None:
            backend, route = passage
            return serve_tcp(backend, self._context, self._routes[route].proxy_protocol.send)
        return serve_http(self.site, self._context, self._certificates.context) if self._ends_tls else None


def _named_only(route: TableRoute) -> TableRoute:
    """The route as far as it can be followed knowing the name alone."""
    rules = [Rule(host=rule.host, to=rule.to) for rule in route.rules if rule.to]
    return msgspec.structs.replace(route, rules=rules)
