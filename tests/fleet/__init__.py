"""Mirrors that ask each other before a registry."""
