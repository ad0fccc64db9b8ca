"""Streams on one model: sources, sessions, and the object that `load` returns."""
