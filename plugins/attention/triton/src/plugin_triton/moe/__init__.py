"""Experts of a mixture in Triton: `runner` is the plugin; the rest are its kernels and their configurations.

Here: routed experts (a few tokens in `gemv`, many in `sorting` and `grouped`), layouts of 8-bit weights (`fp8`), tiles
for devices and shapes (`configs`, `tables/`, `tune`, `command`). Not here: the routing itself, quantization of
activations and other operations (`plugin_triton.ops`).
"""
