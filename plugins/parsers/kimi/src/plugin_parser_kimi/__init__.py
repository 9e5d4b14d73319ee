"""Tool calls of Kimi K2, for core."""
