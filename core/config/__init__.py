"""The one configuration. YAML, environment and flags become one immutable value that remembers who decided each field."""
