"""Which request gets how many tokens in the next step. Numpy, no torch."""
