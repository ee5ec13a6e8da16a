"""The promises of a download, one file a promise."""
