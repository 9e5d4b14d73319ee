"""What only a GPU shows: `python -m tests.gpu` runs it all in parts and says what was proved. pytest collects the same
files everywhere and skips them where there is no GPU."""
