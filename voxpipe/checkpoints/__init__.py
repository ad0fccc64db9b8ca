"""Where weights come from: names and layouts, strict loading, conversion, the model hub."""

from voxpipe import accelerate as accelerate  # before the first import of MLX
