"""Who may do what. It knows no content and no HTTP messages: `mirror.api.gate` asks it."""

FOLDER = "access"
"""In the cache directory: what is kept of users, tokens and keys."""
