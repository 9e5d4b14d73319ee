"""Makes `parity` importable from the tests of every plugin."""
