"""Bundles and archives."""
