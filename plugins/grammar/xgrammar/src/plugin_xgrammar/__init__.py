"""Constrained decoding by the XGrammar library: masks of a grammar's states are computed when it is compiled.

What lives here: the library's tokenizer from a vocabulary, schemas rewritten to what it follows exactly, its matcher
behind core's. What does not: reading what users write (core.parsing), sampling.
"""
