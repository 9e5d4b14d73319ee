"""The one configuration: YAML, environment and flags become one immutable value.

It remembers who decided each field; `core config show` prints that.
"""
