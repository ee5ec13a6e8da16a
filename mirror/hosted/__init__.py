"""Pushes: what a client sends to a repository that lives in this mirror, and what is checked before it is kept."""
