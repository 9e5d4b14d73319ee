"""Reasoning as Nemotron 3 writes it."""
