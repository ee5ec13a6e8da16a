"""The cache's parts."""
