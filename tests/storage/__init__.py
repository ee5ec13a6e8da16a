"""The storage folder's tests."""
