"""Prometheus metrics and the per-step record."""
