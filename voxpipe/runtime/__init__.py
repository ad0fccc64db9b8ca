"""Streams on one model: sources, sessions, and the object that `load` returns."""

from voxpipe import accelerate as accelerate  # before the first import of MLX
