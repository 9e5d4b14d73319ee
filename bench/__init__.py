"""Benchmarks that anyone can run. `python -m bench.cpu` compares with peers; the rest are micro-benchmarks."""
