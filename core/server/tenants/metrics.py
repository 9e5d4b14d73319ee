"""What /metrics shows of tenants. The label `tenant` has configured names only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from core.server.tenants.table import TenantTable

if TYPE_CHECKING:
    from prometheus_client import Metric

LIMITS = ("requests", "tokens", "concurrency")
KINDS = ("prompt", "cached", "generation")


class TenantMetrics(Collector):
    """Reads the table; nothing is counted twice."""

    def __init__(self, table: TenantTable) -> None:
        self._table = table

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        if not len(self._table):
            return
        admitted = CounterMetricFamily("core_tenant_requests", "Requests within the limits.", labels=["tenant"])
        refused = CounterMetricFamily(
            "core_tenant_refused_requests", "Requests answered 429, by the limit.", labels=["tenant", "limit"]
        )
        tokens = CounterMetricFamily(
            "core_tenant_tokens",
            "Tokens of prompts, of those from the cache, and generated.",
            labels=["tenant", "kind"],
        )
        running = GaugeMetricFamily("core_tenant_running_requests", "HTTP requests that generate.", labels=["tenant"])
        for tenant in self._table:
            admitted.add_metric([tenant.name], tenant.admitted)
            running.add_metric([tenant.name], tenant.concurrent)
            for limit in LIMITS:
                refused.add_metric([tenant.name, limit], tenant.refused[limit])
            for kind in KINDS:
                tokens.add_metric([tenant.name, kind], tenant.num_tokens[kind])
        yield from (admitted, refused, tokens, running)
