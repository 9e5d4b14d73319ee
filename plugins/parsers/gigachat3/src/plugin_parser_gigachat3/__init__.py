"""Tool calls of GigaChat 3, for core."""
