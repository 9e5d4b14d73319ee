"""Load generators and measurements behind `core bench`.

What lives here: datasets, the HTTP load client, offline and latency runs, the report they share.
What does not: comparisons with peers (folder `bench/` of the repository), kernel micro-benchmarks.
"""
