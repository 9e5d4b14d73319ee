"""Workloads one after another on one engine; keeps what was found, tells people as it goes, writes JSON after each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from core.bench.first_token import Start, measure_starts
from core.bench.offline import OfflineBench
from core.bench.workload_report import (
    Found,
    facts,
    render_measured,
    render_model,
    render_profile,
    render_starts,
)
from core.bench.workload_run import WorkloadBench
from core.bench.workloads import Workload
from core.config.sections import Settings
from core.interfaces.errors import EngineError
from core.registry import Catalog
from core.registry.resolve import resolve


class WorkloadSession:
    """tell: gets texts for people. save: file that gets all figures as JSON. divisor: see `Workload.smaller`.
    failed: workload -> why; the others run all the same."""

    def __init__(
        self, settings: Settings, *, divisor: int, tell: Callable[[str], None], save: Path | None = None
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._save = save
        self.found = Found(divisor)

    @property
    def failed(self) -> dict[str, str]:
        return self.found.failed

    def json(self) -> str:
        """Everything that was found."""
        return json.dumps(self.found.as_dict(), indent=1)

    def run(self, works: Sequence[Workload], *, repeat: int, limit_s: float | None, kernels: int) -> None:
        """Starts first, while the device is free; then one engine for all others. Raises whatever stops its start."""
        starts = [work for work in works if work.figure == "start_s"]
        for work in starts:
            self._starts(work)
        if len(starts) == len(works):
            self.found.facts = facts(resolve(self._settings, Catalog.scan()))
            self._write()
            return
        with OfflineBench(self._settings) as bench:
            self.found.facts = facts(bench.resolution)
            ready = WorkloadBench(bench)
            self.found.counts, self.found.ceilings = ready.counts, ready.ceilings
            self._tell(f"ready in {bench.start_s:.2f} s; {render_model(ready.counts, ready.ceilings)}")
            for work in works:
                if work.figure != "start_s":
                    self._one(ready, work, repeat, limit_s, kernels)

    def _starts(self, work: Workload) -> None:
        try:
            self.found.starts = dict[str, Start](measure_starts(self._settings, work))
            self._tell(render_starts(self.found.starts))
        except EngineError as error:
            self._fail(work, error)

    def _one(self, ready: WorkloadBench, work: Workload, repeat: int, limit_s: float | None, kernels: int) -> None:
        try:
            measured = ready.run(work, repeat=repeat, limit_s=limit_s)
            self.found.measured.append(measured)
            self._tell(render_measured(measured))
            if kernels:
                self.found.profiles[work.name] = found = ready.profile(work, repeat + 1)
                self._tell(render_profile(found, kernels))
        except EngineError as error:
            self._fail(work, error)
        self._write()  # after each: a run that is cut short leaves what it has

    def _fail(self, work: Workload, error: EngineError) -> None:
        self.failed[work.name] = str(error)
        self._tell(f"{work.name:<6} failed: {error}")

    def _write(self) -> None:
        if self._save is not None:
            self._save.write_text(self.json() + "\n")
