"""The command line. `main` is lazy, nothing heavy is imported for --help."""
