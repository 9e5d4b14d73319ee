"""`core bench`: serve (over HTTP), offline (throughput in process), latency (one batch in process)."""

from __future__ import annotations

from core.cli.commands import CommandSpec
from core.cli.group import LazyGroup

command = LazyGroup(
    (
        CommandSpec("serve", "core.cli.bench_serve:command", "Load on a running server, as its clients see it."),
        CommandSpec("offline", "core.cli.bench_offline:command", "Throughput of many requests in this process."),
        CommandSpec("latency", "core.cli.bench_offline:latency", "Latency of one batch in this process, repeated."),
    ),
    name="bench",
    help="Measure. Every command prints a table, or JSON with --json.",
)
