"""Keeping the cache in order: its size, its age limits, and that what is kept is still what it was."""
