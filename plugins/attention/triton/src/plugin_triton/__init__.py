"""Attention, operations and experts for core in Triton, for NVIDIA and AMD GPUs."""
