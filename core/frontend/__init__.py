"""Text to tokens and back: chat templates, tokenizer, incremental decoding, stop strings, parsers; one output stage.

What lives here: all that the doors (HTTP, command line, `LLM`) do to text, the same for each of them.
What does not: HTTP, the engine, anything that computes. Importing it loads neither torch nor transformers.
"""
