"""The worker processes that serve DNS and traffic, and what feeds them the Table.

plane.py       what DNS server and proxy have in common: they are given Tables, and tell what is wrong
workers.py     the supervisor: as many workers as are wanted, and nothing of those that are not
  slot.py        one worker's place: kept filled, handed on without a gap
  newcomer.py    a process that stands by, to fill a place at once
  sockets.py     listening sockets that outlive who opened them
feed.py        the Table's way to the workers, the supervisor's side
  frames.py      what both sides say
follower.py    … and the worker's side
worker.py      the worker's process: one DNS server or one proxy
load.py        what the proxies carry, second by second
waiting.py     who waits for services at zero
table_file.py  a Table in a file instead of an agent's
"""
