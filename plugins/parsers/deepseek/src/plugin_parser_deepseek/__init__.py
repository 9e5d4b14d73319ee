"""Tool calls of DeepSeek models, for core."""
