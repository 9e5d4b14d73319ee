"""Gemma models for core."""
