"""Experts of a mixture in Triton: `runner` is the plugin; the rest are its kernels and their configurations.

Here: routed experts, sorting of tokens by expert, activations quantized for them. Not here: routing itself and other
operations.
"""
