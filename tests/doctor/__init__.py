"""``mirror doctor``: each thing that can be wrong, made wrong."""
