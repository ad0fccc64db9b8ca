"""The mathematics of Voxtral Realtime on MLX. Weights and stream state are kept apart."""

from voxpipe import accelerate as accelerate  # before the first import of MLX
