"""The one configuration. YAML, environment and flags become one immutable value that remembers who decided each field.

What lives here: the sections (`sections`), what is derived from them for flags and documentation (`fields`), and
the loading of values from all sources (`loading`).
What does not: choices that need plugins or a checkpoint (core.registry).
"""
