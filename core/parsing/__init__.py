"""What parsers of generated text are made of; plugins build theirs from it."""
