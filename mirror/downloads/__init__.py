"""Downloads of blobs: one flight for each blob, shared by all its readers, from the first request until the file is complete and verified."""
