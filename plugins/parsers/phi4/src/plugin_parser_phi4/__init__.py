"""Tool calls of Phi-4-mini, for core."""
