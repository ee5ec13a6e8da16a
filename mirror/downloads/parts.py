"""The parts that readers yield: see mirror/storage/slices.py."""

from __future__ import annotations

from mirror.storage.slices import FileSlice as FileSlice
from mirror.storage.slices import Part as Part
from mirror.storage.slices import Reader as Reader
