"""Tool calls as a list of calls in Python."""
