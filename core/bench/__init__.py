"""Load generators and measurements behind `core bench`.

What lives here: datasets, the HTTP load client, offline and latency runs with the report they share; the named
workloads (workloads, workload_run, workload_report, first_token) beside the device's limits (counting, ceilings,
roofline, breakdown); kernel micro-benchmarks.
What does not: comparisons with peers (folder `bench/` of the repository).
"""
