"""The command line. `main` is lazy, nothing heavy is imported for --help.

What lives here: the entry (`main`), the table of commands (`commands`), options made from the settings
(`options`), and one file per command.
What does not: what a command does beyond reading its options and printing (core.server, core.bench, core.llm).
"""
