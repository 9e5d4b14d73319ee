"""The parent's half of a model: tokenizer, parsers, recommended sampling. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.config.sections import Settings
from core.engine.client import EngineClient
from core.engine.messages import Hello
from core.frontend.chat import ChatRenderer
from core.frontend.parameters import generation_defaults
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import CheckpointError, PluginLoadError, RequestError
from core.registry import Choice, Resolution
from core.server.context import ModelService


def load_renderer(settings: Settings, resolution: Resolution) -> ChatRenderer:
    """Tokenizer and parsers. Raises CheckpointError, ConfigError or PluginLoadError."""
    tokenizer = Tokenizer.load(
        settings.model.tokenizer or resolution.checkpoint,
        chat_template=settings.model.chat_template,
        trust_remote_code=settings.model.trust_remote_code,
    )
    return ChatRenderer(tokenizer, _parser(resolution.tool_parser), _parser(resolution.reasoning_parser))


def load_service(
    settings: Settings, resolution: Resolution, name: str
) -> Callable[[EngineClient, Hello], ModelService]:
    """All that does not need the engine, done; call the result once the engine is there."""
    renderer = load_renderer(settings, resolution)
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


def recommended_sampling(tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json's sampling. Raises CheckpointError if it is out of range."""
    try:
        return generation_defaults(tokenizer.generation_config)
    except RequestError as error:
        raise CheckpointError(error.message, hint="correct generation_config.json") from error


def _parser(choice: Choice) -> Any:
    if choice.target is None:
        return None
    try:
        return choice.target()
    except Exception as error:
        raise PluginLoadError(f"the parser {choice.name} cannot be made: {error}") from error


def _plugin(choice: Choice) -> dict[str, Any]:
    record = choice.record
    return {
        "kind": choice.kind,
        "name": choice.name,
        "distribution": record.distribution if record is not None else None,
        "version": record.version if record is not None else None,
        "reason": choice.reason,
    }
