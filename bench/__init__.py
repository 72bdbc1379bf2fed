"""Measurements from outside: keys in, containers, names and answers out. Run with `make bench`."""
