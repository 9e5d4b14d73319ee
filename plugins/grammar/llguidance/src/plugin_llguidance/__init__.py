"""Constrained decoding by the llguidance library: an Earley parser over lazily built automata, computed step by step.

What lives here: the library's tokenizer from a vocabulary, schemas and structures as its grammars, its matcher behind
core's. What does not: reading what users write (core.parsing), sampling.
"""
