"""How many replicas a service should have, from what is measured: pure, time is an argument.

model.py       what goes in (`Target`, `Reading`) and what comes out (`Decision`)
autoscaler.py  `Autoscaler`: all services of a cluster, tick by tick
  board.py       what the last readings say, a column each        followed.py  one service: its bounds, changes, looks
  windows.py     the last minute of each metric, as arrays        limits.py    `behavior`: rates and stabilisation
  pace.py        modes `kpa` and `predictive`                     hpa.py       mode `hpa`
  season.py      days and weeks                                   sentences.py why
replay.py      a recorded series through all of that: `mesh autoscale --replay`
"""
