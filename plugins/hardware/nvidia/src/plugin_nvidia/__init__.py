"""NVIDIA GPUs for core. What lives here: the device. What does not: kernels, which are plugins of their own."""
