"""Reasoning as Kimi models write it."""
