"""A process that leads and works until its fence is refused: `python -m tests.parts.lock_holder ADDRESS KEY TTL`.

It deliberately never looks whether it still leads. Exit code 0: the store refused it.
"""

import asyncio
import sys

from mesh.settings import StoreSettings
from mesh.store import Op, lease
from mesh.store.consul import ConsulStore


async def main(address: str, key: str, ttl: float) -> None:
    store = ConsulStore(StoreSettings(address=address))
    lock = await lease.acquire(store, key, b"", "holder", ttl)
    count = 0
    while (await store.txn([lock.fence(), Op("set", "t/work", f"holder {count}".encode())])).ok:
        count += 1
    await lock.release()
    await store.close()


asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
