"""Numbers about the engine and its requests: one record per step, from which log line and metrics are derived.

No torch, no global registry: every server and every engine owns its numbers.
"""
