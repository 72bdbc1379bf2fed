"""How fast replicas are placed: ours beside one-at-a-time and sampling schedulers, on the same services and nodes."""
