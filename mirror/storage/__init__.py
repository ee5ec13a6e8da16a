"""Storage: everything that is kept, and the only place that knows threads, SQLite, files and locks."""
