"""Tool calls and reasoning of Cohere's Command models, for core."""
