"""The parent's half of a model, loaded while the engine's process loads the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.config.sections import Settings
from core.engine.client import EngineClient
from core.engine.messages import Hello
from core.frontend.loading import load_renderer, recommended_sampling
from core.registry import Choice, Resolution
from core.server.context import ModelService


def load_service(
    settings: Settings, resolution: Resolution, name: str
) -> Callable[[EngineClient, Hello], ModelService]:
    """All that does not need the engine, done; call the result once the engine is there."""
    renderer = load_renderer(
        settings.model,
        resolution.checkpoint,
        resolution.parser_factory(resolution.tool_parser),
        resolution.parser_factory(resolution.reasoning_parser),
    )
    defaults = recommended_sampling(renderer.tokenizer)

    def service(engine: EngineClient, hello: Hello) -> ModelService:
        return ModelService(
            name=name,
            path=str(resolution.checkpoint),
            engine=engine,
            tokenizer=renderer.tokenizer,
            renderer=renderer,
            hello=hello,
            defaults=defaults,
            facts={"effective": resolution.effective, "plugins": [_plugin(choice) for choice in resolution.choices()]},
        )

    return service


def _plugin(choice: Choice) -> dict[str, Any]:
    record = choice.record
    return {
        "kind": choice.kind,
        "name": choice.name,
        "distribution": record.distribution if record is not None else None,
        "version": record.version if record is not None else None,
        "reason": choice.reason,
    }
