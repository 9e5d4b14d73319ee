"""Qwen models for core."""
