from voxpipe import accelerate as accelerate  # before the first import of MLX
