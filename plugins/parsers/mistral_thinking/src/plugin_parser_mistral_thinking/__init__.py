"""Reasoning as Magistral writes it."""
