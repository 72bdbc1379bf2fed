"""A scheduler in a process of its own, to be killed: `python -m tests.scheduler.scheduler_main STORE NAME TTL`."""

import sys

from mesh.daemon import run_scheduler
from mesh.settings import SchedulerSettings, StoreSettings

if __name__ == "__main__":
    address, name, ttl = sys.argv[1:]
    store = StoreSettings(address=address)
    settings = SchedulerSettings(store=store, name=name, admin_listen="127.0.0.1:0", session_ttl=float(ttl))
    sys.exit(run_scheduler(settings))
