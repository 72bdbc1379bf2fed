"""A service that runs until told to stop: its rollouts, its slots, and what operators ask of them."""
