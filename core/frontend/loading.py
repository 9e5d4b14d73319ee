"""Tokenizer, parsers and recommended sampling of a resolved model. No torch."""

from __future__ import annotations

from typing import Any

from core.config.sections import Settings
from core.frontend.chat import ChatRenderer
from core.frontend.parameters import generation_defaults
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import CheckpointError, PluginLoadError, RequestError
from core.registry import Choice, Resolution


def load_renderer(settings: Settings, resolution: Resolution) -> ChatRenderer:
    """Tokenizer and parsers. Raises CheckpointError, ConfigError or PluginLoadError."""
    tokenizer = Tokenizer.load(
        settings.model.tokenizer or resolution.checkpoint,
        chat_template=settings.model.chat_template,
        trust_remote_code=settings.model.trust_remote_code,
    )
    return ChatRenderer(tokenizer, _parser(resolution.tool_parser), _parser(resolution.reasoning_parser))


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
