"""A guestbook: the example application. A web front end keeps its entries in Redis, found by name."""
