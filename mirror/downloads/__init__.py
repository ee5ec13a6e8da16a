"""Flights: one download of a blob, however many read it, from the first request until its file is finished and verified."""
