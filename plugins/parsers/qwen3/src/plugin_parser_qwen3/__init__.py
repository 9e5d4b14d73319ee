"""Reasoning as Qwen3 writes it."""
