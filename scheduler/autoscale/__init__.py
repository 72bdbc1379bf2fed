"""How many replicas a service should have, from what is measured: pure, time is an argument.

model.py       what goes in (`Target`, `Reading`) and what comes out (`Decision`)
autoscaler.py  `Autoscaler`: all services of a cluster, tick by tick
"""
