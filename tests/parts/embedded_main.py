"""The embedded store in a process of its own, to be killed: `python -m tests.parts.embedded_main FOLDER LISTEN`."""

import asyncio
import sys
from pathlib import Path

from mesh.settings import EmbeddedStoreSettings
from mesh.store.embedded import EmbeddedStore


async def main(folder: str, listen: str) -> None:
    store = EmbeddedStore(EmbeddedStoreSettings(Path(folder), listen))
    await store.start()
    print(store.address, flush=True)
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], sys.argv[2]))
