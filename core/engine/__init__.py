"""One loop of stages and the process boundary around it."""
