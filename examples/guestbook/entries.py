"""A stand-in for Redis where none can be had: the five commands of the guestbook, kept in memory.

Speaks the same protocol on the same port, so the web front end does not know the difference.
"""

import asyncio
import contextlib
import os
import signal
from collections import defaultdict, deque

LONGEST_WORD = 64 * 1024
MOST_WORDS = 1024

Lists = dict[bytes, deque[bytes]]


def answer(lists: Lists, words: list[bytes]) -> bytes:
    """The reply to one command, encoded."""
    match [words[0].upper(), *words[1:]]:
        case [b"PING"]:
            return b"+PONG\r\n"
        case [b"LPUSH", key, *values] if values:
            lists[key].extendleft(values)
            return b":%d\r\n" % len(lists[key])
        case [b"LLEN", key]:
            return b":%d\r\n" % len(lists[key])
        case [b"LRANGE", key, first, last] if _number(first) and _number(last):
            found = _range(lists[key], int(first), int(last))
            return b"*%d\r\n" % len(found) + b"".join(b"$%d\r\n%s\r\n" % (len(item), item) for item in found)
        case [b"LTRIM", key, first, last] if _number(first) and _number(last):
            lists[key] = deque(_range(lists[key], int(first), int(last)))
            return b"+OK\r\n"
        case [name, *_]:
            return b"-ERR wrong use of, or unknown, command '%s'\r\n" % name[:40]
    raise AssertionError("a command has a first word")


def _number(word: bytes) -> bool:
    return word.removeprefix(b"-").isdigit()


def _range(items: deque[bytes], first: int, last: int) -> list[bytes]:
    """Both ends count, and negative ones from the end."""
    size = len(items)
    first = max(first + size if first < 0 else first, 0)
    last = max(last + size, -1) if last < 0 else last
    return list(items)[first : last + 1]


async def read_command(reader: asyncio.StreamReader) -> list[bytes] | None:
    """A RESP array of bulk strings; None at the end, or at what is no command."""
    try:
        count = _length(await reader.readuntil(b"\r\n"), b"*", MOST_WORDS)
        words = []
        for _ in range(count):
            size = _length(await reader.readuntil(b"\r\n"), b"$", LONGEST_WORD)
            words.append((await reader.readexactly(size + 2))[:-2])
        return words or None
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, OSError):
        return None


def _length(line: bytes, mark: bytes, most: int) -> int:
    if line[:1] != mark or not 0 <= int(line[1:]) <= most:
        raise ValueError("not RESP")
    return int(line[1:])


async def serve(host: str, port: int) -> None:
    """Serves until SIGTERM."""
    lists: Lists = defaultdict(deque)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while words := await read_command(reader):
                writer.write(answer(lists, words))
                await writer.drain()
        writer.close()

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = await asyncio.start_server(talk, host, port)
    await stopping.wait()
    server.close()


def main() -> None:
    asyncio.run(serve(os.environ.get("HOST", "0.0.0.0"), int(os.environ.get("PORT_REDIS", "6379"))))


if __name__ == "__main__":
    main()
