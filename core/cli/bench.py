"""`core bench`: serve (over HTTP), offline and latency (in process), workload (W0-W5), kernels (single operations)."""

from __future__ import annotations

from core.cli.commands import CommandSpec
from core.cli.group import LazyGroup

command = LazyGroup(
    (
        CommandSpec("serve", "core.cli.bench_serve:command", "Load on a running server, as its clients see it."),
        CommandSpec("offline", "core.cli.bench_offline:command", "Throughput of many requests in this process."),
        CommandSpec("latency", "core.cli.bench_offline:latency", "Latency of one batch in this process, repeated."),
        CommandSpec("workload", "core.cli.bench_workload:command", "Named workloads beside the device's limits."),
        CommandSpec("kernels", "core.cli.bench_kernels:command", "Single operations by every installed plugin."),
    ),
    name="bench",
    help="Measure. Every command prints a table, or JSON with --json.",
)
