"""Mock hardware, mock model, byte tokenizer and contract suites, for core and for plugin authors."""
