"""8-bit weights with one scale a row."""
