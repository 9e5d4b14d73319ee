"""A whole engine in this process, resolved and built as core does it, from plugin objects and a tiny checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.config.loading import load_settings
from core.engine.build import build_engine
from core.engine.client import EngineRequest
from core.engine.offline import OfflineEngine
from core.interfaces.params import SamplingParams
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.registry.resolution import Resolution
from core.registry.resolve import resolve
from core.testing.mock_model import MockModel
from core.testing.tiny_model import TinyModel, tiny_config


def catalog_with(extra: Iterable[PluginRecord] = ()) -> Catalog:
    """Core's own plugins, the models of `core.testing`, and `extra`, which replace those of the same kind, name and
    distribution."""
    installed = [record for record in Catalog.scan().records if record.distribution == "core"]
    models = [
        PluginRecord("models", name, "core-testing", "1.0", target=f"core.testing:{name}", loaded=model)
        for name, model in (("TinyForCausalLM", TinyModel), ("MockForCausalLM", MockModel))
    ]
    records = {(record.kind, record.full_name): record for record in (*installed, *models, *extra)}
    return Catalog.from_records(records.values())


def write_config(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """A checkpoint that is a config.json only: its weights are random. config: TinyModel's unless given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or tiny_config()))
    return folder


def resolve_in_process(folder: Path, catalog: Catalog, **flat: Any) -> tuple[Any, Resolution]:
    """(Settings, Resolution) as `core serve` would have them with the settings `flat`."""
    given = {
        "model": str(folder), "load_format": "dummy", "random_seed": 1, "log_interval_s": 0,
        "max_running_requests": 4, "max_total_tokens": 512, **flat,
    }  # fmt: skip
    settings = load_settings(given, {}, origin="argument").settings
    return settings, resolve(settings, catalog)


def build_in_process(folder: Path, catalog: Catalog, **flat: Any) -> OfflineEngine:
    """An engine of `flat` settings, ready to generate; give it back with `engine.close()`."""
    return OfflineEngine(build_engine(*resolve_in_process(folder, catalog, **flat)), 1)


def generate(
    engine: OfflineEngine, prompts: Sequence[Sequence[int]], params: SamplingParams | None = None
) -> list[list[int]]:
    """The tokens of each prompt's answer; greedy, 8 tokens, unless said otherwise. Fails if a request does."""
    params = params or SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    requests = [EngineRequest(np.array(prompt, np.int32), params, seed=i) for i, prompt in enumerate(prompts)]
    chunks = engine.generate(requests)
    for chunk in chunks:
        assert chunk.error is None, chunk.error
    return [chunk.tokens for chunk in chunks]
