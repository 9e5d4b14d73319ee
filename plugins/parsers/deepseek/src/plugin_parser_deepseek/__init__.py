"""Tool calls and reasoning of DeepSeek models, for core."""
