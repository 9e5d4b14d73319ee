"""Streaming attention for core."""
