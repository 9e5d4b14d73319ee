"""Tool calls of Llama 3.1 to 3.3, for core."""
