"""What several mirrors reach together."""
