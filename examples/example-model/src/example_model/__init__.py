"""GPT-2 for core. Importing the package imports nothing: core reads the manifest beside this file as a file."""
