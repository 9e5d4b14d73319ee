"""The parent's half of a model, loaded while the engine's process loads the other."""

from __future__ import annotations

from collections.abc import Callable

from core.config.sections import Settings
from core.engine.client import EngineClient
from core.engine.messages import Hello
from core.frontend.loading import load_renderer, recommended_sampling
from core.frontend.tokenizer import Tokenizer
from core.registry import Resolution
from core.registry.report import choice_data
from core.server.context import ModelService


def load_service(
    settings: Settings, resolution: Resolution, name: str, tokenizer: Tokenizer | None = None
) -> Callable[[EngineClient, Hello], ModelService]:
    """All that does not need the engine, done; call the result once the engine is there.

    tokenizer: instead of the checkpoint's.
    """
    renderer = load_renderer(
        settings.model,
        resolution.checkpoint,
        resolution.parser_factory(resolution.tool_parser),
        resolution.parser_factory(resolution.reasoning_parser),
        tokenizer,
    )
    defaults = recommended_sampling(renderer.tokenizer)

    def service(engine: EngineClient, hello: Hello) -> ModelService:
        renderer.tokenizer.limit(hello.context_length)
        return ModelService(
            name=name,
            path=str(resolution.checkpoint),
            engine=engine,
            tokenizer=renderer.tokenizer,
            renderer=renderer,
            hello=hello,
            defaults=defaults,
            plan=resolution.pooling,
            facts={
                "effective": resolution.effective,
                "plugins": [choice_data(choice) for choice in resolution.choices()],
                "warnings": list(resolution.warnings),
            },
        )

    return service
