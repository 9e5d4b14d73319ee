"""Attention and operations in C for the CPU device, compiled on first use."""
