"""The worker processes that serve DNS and traffic, and what feeds them the Table."""
