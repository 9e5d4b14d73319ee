"""Tool calls of Cohere's Command models, for core."""
