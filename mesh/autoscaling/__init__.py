"""The autoscaler at work: what the leader asks, of whom, and what it does with the answer.

agents.py      what the proxies of all nodes carry, asked once a second
prometheus.py  numbers from elsewhere
waiting.py     whether requests wait for a service that sleeps
demand.py      what services are asked for, from answer to answer: pure
readings.py    demand and replicas become readings: pure
troubles.py    what people must be told: pure
live.py        readings → `Autoscaler` → counts to write
telling.py     what people are told of it, and its metrics

The deciding itself is pure, and in `mesh.scheduler.autoscale`.
"""
