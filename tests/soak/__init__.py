"""The soak: a real server under mixed, hostile load and faults; afterwards nothing is left. `python -m tests.soak`."""
