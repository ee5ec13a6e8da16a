"""The clients' files: what is written into them, and what is left alone."""
