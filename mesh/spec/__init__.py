"""What an operator writes: the service spec, its notations, its checks, its files."""
