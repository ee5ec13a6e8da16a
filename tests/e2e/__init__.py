"""Real clients pull from real registries through the mirror."""
