"""The Harmony format of gpt-oss, for core."""
