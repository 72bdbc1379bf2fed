"""A Docker engine as asyncio sees it: the SDK's calls in threads, its faults as ours, its streams to be closed.

The SDK is synchronous. What it raises becomes `RuntimeUnavailable` where the engine does not answer, `NotThere` for
a 404, `Conflict` for a 409, and `RuntimeFault` with the engine's own sentence for the rest. The SDK is imported with
the first call: it costs 10 MB, which an agent of processes need not carry.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from mesh.runtime import RuntimeFault, RuntimeUnavailable
from mesh.runtime.docker_way import barred_by_tls, remote_host, way_to

DEFAULT_HOST = "unix:///var/run/docker.sock"
CALL_TIMEOUT = 60.0
PING_TIMEOUT = 5.0
CALLS = 12
"""At once. Enough for health probes beside a burst of starts, of which an engine gains nothing above four."""
UNREAD_ITEMS = 256


class NotThere(RuntimeFault):
    """The engine does not know the container, image or network."""


class Conflict(RuntimeFault):
    """The name is taken, or the container's state forbids it."""


class Engine:
    """One engine, at `host` (default: `DOCKER_HOST`, else the local socket).

    `state`: the folder of an agent, which finds what an earlier life has left; None: nothing is left that lasts.
    """

    def __init__(self, host: str | None = None, state: Path | None = None) -> None:
        self.host = host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
        self._way = way_to(self.host, state)
        self._calls = asyncio.Semaphore(CALLS)
        self._clients: dict[float, Any] = {}
        self._connecting = threading.Lock()

    @property
    def local(self) -> bool:
        return self.host.startswith("unix://")

    @property
    def remote_host(self) -> str | None:
        """The machine that it runs on; None if that is this one."""
        return remote_host(self.host)

    async def call(self, function: Callable[[Any], Any], *, timeout: float | None = None) -> Any:
        """What `function` makes of the SDK's APIClient, in a thread; `timeout` bounds the wait for each answer."""
        async with self._calls:
            return await in_thread(lambda: self._run(function, timeout or CALL_TIMEOUT))

    async def ping(self) -> None:
        await self.call(lambda api: api.ping(), timeout=PING_TIMEOUT)

    @asynccontextmanager
    async def stream(self, opened: Callable[[Any], Any]) -> AsyncIterator[AsyncIterator[Any]]:
        """The items of the SDK's stream that `opened` returns, read in a thread of its own.

        Leaving the context closes the connection, which ends the thread.
        """
        stream = await self.call(opened)
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Any] = asyncio.Queue()
        room = threading.Semaphore(UNREAD_ITEMS)
        closed = threading.Event()
        end = object()

        def pump() -> None:
            last: object = end
            try:
                for item in stream:
                    room.acquire()
                    if closed.is_set():
                        break
                    loop.call_soon_threadsafe(items.put_nowait, item)
            except Exception as fault:
                last = self._translated(fault)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(items.put_nowait, last)

        async def read() -> AsyncIterator[Any]:
            while (item := await items.get()) is not end:
                if isinstance(item, RuntimeFault):
                    raise item
                room.release()
                yield item

        threading.Thread(target=pump, name="docker stream", daemon=True).start()
        try:
            yield read()
        finally:
            closed.set()
            room.release()
            with suppress(OSError, AttributeError):  # it has ended by itself
                stream.close()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._way.close()

    def _run(self, function: Callable[[Any], Any], timeout: float) -> Any:
        try:
            return function(self._client(timeout))
        except Exception as fault:
            raise self._translated(fault) from fault

    def _client(self, timeout: float) -> Any:
        """The SDK's client whose answers may take `timeout` seconds. Connects on its first use."""
        from mesh.runtime.docker_client import Client

        with self._connecting:
            way = self._way.open()
            if timeout not in self._clients:
                self._clients[timeout] = Client(version="auto", timeout=timeout, **way)
            return self._clients[timeout]

    def _translated(self, fault: Exception) -> RuntimeFault:
        from docker.errors import APIError, DockerException
        from requests.exceptions import RequestException

        if isinstance(fault, RuntimeFault):
            return fault
        if barred := barred_by_tls(self.host, str(fault), _root(fault)):
            return RuntimeUnavailable(barred)
        if isinstance(fault, APIError):
            kind = {404: NotThere, 409: Conflict}.get(fault.status_code, RuntimeFault)
            return kind(str(fault.explanation or fault))
        if isinstance(fault, (DockerException, RequestException, OSError)):
            return RuntimeUnavailable(f"the Docker engine at {self.host} does not answer: {_cause(fault)}")
        return RuntimeFault(f"the Docker engine at {self.host} gave an answer that makes no sense: {fault!r}")


async def docker_available(docker_host: str | None = None, state: Path | None = None) -> str | None:
    """None if an engine can be used, else the sentence why not and what to do."""
    engine = Engine(docker_host, state)
    try:
        if engine.host.startswith("unix://"):
            await in_thread(lambda: _try_socket(engine.host.removeprefix("unix://")))
        await engine.ping()
    except RuntimeFault as fault:
        return str(fault)
    finally:
        engine.close()
    return None


def _try_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PING_TIMEOUT)
        try:
            probe.connect(path)
        except FileNotFoundError:
            raise RuntimeUnavailable(
                f"no Docker engine runs here ({path} is not there): install it (Debian: apt-get install docker.io) "
                "or start it (systemctl start docker)"
            ) from None
        except PermissionError:
            raise RuntimeUnavailable(
                f"this user may not use the Docker engine (permission denied on {path}): "
                "run as root, or `sudo usermod -aG docker $USER` and log in again"
            ) from None
        except OSError as error:
            raise RuntimeUnavailable(
                f"the Docker engine does not answer on {path} ({error.strerror or error}): systemctl restart docker"
            ) from None


async def in_thread(function: Callable[[], Any]) -> Any:
    """Like `asyncio.to_thread`, but in a daemon thread: a call that hangs does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as fault:
            error = fault
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="docker call", daemon=True).start()
    return await done


def _root(fault: BaseException) -> BaseException:
    seen = {fault}
    while (cause := fault.__cause__ or fault.__context__ or _wrapped(fault)) and cause not in seen:
        seen.add(cause)
        fault = cause
    return fault


def _wrapped(fault: BaseException) -> BaseException | None:
    """What urllib3 puts into another exception instead of chaining it."""
    return next((one for one in fault.args if isinstance(one, BaseException)), None)


def _cause(fault: BaseException) -> str:
    fault = _root(fault)
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
