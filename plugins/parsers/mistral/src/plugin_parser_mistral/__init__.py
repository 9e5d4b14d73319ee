"""Tool calls of Mistral models, for core."""
