"""One node's agent: makes the node's plan so, and reports what it sees."""
