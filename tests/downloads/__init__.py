"""The downloads folder's tests."""
