"""Text to tokens and back: chat templates, tokenizer, incremental detokenizer, stop strings, parsers applied. One output stage."""
