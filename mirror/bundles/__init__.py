"""Bundles: one tar with images that every tool loads; see layout.py for its shape."""
