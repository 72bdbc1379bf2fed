"""`mesh logs`, `exec`: into replicas, through their nodes' agents."""
