"""Several hosts on this one machine, each with its own address, Docker engine, Consul and mesh, and faults at will.

    python -m tests.lab up --hosts 3 --consul 3        (as root; `make lab`)

A host is a set of namespaces with an init as its process 1 and a cgroup of its own: killing the init is a power cut.
All hosts hang on one switch, a bridge in a network namespace of its own; the machine has a port on it too. What is up
is written down in one folder, so every command, a test, or a `down` after a crash finds it.

    switch.py   cables, partitions, loss            wire.py     a slow wire for one host
    host.py     namespaces, programs, power cuts    parts.py    Docker, Consul and the mesh on a host
    lab.py      the whole: up, faults, down         __main__.py the commands
    security.py certificates and tokens (--secure)  store.py    how its Consul is asked
"""
