"""Storage in a directory: verified content as files, downloads in progress beside them, and a catalog in SQLite."""
