"""Tests of voxpipe."""

from voxpipe import accelerate as accelerate  # before any test imports MLX
