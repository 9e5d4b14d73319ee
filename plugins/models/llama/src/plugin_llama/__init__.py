"""Llama and Mistral models for core."""
