"""GLM-4 models for core."""
