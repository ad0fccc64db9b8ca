"""Measurements anyone can repeat: `python -m voxpipe.bench`."""
