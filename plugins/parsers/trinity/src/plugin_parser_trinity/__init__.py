"""Tool calls of Trinity models, for core."""
