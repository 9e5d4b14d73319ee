"""A logit processor for core that ends reasoning after a number of tokens."""
