"""NVIDIA GPUs for core: memory, streams, recorded steps, collectives."""
