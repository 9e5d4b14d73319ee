"""Text to tokens and back.

What lives here: chat templates, tokenizer, and the ONE output stage (incremental detokenizer, stop strings,
parsers applied). What does not: HTTP, the engine.
"""
