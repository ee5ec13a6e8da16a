"""Serves the images of bundles read-only, straight from the tar: what ``mirror export --laptop`` puts beside a bundle as ``mirror.pyz``.

It runs on any machine with Python 3.8 or newer: the standard library is all it needs, and nothing else of `mirror` is imported.
"""
