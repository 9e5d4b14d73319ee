"""Tokenizer, parsers and recommended sampling of a resolved model. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from core.config.sections import ModelSettings
from core.frontend.chat import ChatRenderer
from core.frontend.parameters import generation_defaults
from core.frontend.tokenizer import Tokenizer
from core.interfaces.errors import CheckpointError, PluginLoadError, RequestError
from core.interfaces.parsers import ReasoningParser, ToolParser

T = TypeVar("T")


def load_renderer(
    settings: ModelSettings,
    checkpoint: Path,
    tool_parser: Callable[[], ToolParser] | None = None,
    reasoning_parser: Callable[[], ReasoningParser] | None = None,
    tokenizer: Tokenizer | None = None,
) -> ChatRenderer:
    """Tokenizer and parsers. checkpoint: folder. The parsers' factories make what was chosen; None is off.
    tokenizer: one that is there already.

    Raises CheckpointError, ConfigError or PluginLoadError.
    """
    if tokenizer is None:
        tokenizer = Tokenizer.load(
            settings.tokenizer or checkpoint,
            chat_template=settings.chat_template,
            trust_remote_code=settings.trust_remote_code,
        )
    return ChatRenderer(tokenizer, _made(tool_parser), _made(reasoning_parser))


def recommended_sampling(tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json's sampling. Raises CheckpointError if it is out of range."""
    try:
        return generation_defaults(tokenizer.generation_config)
    except RequestError as error:
        raise CheckpointError(error.message, hint="correct generation_config.json") from error


def _made(parser: Callable[[], T] | None) -> T | None:
    if parser is None:
        return None
    try:
        return parser()
    except Exception as error:
        raise PluginLoadError(f"the parser {parser!r} cannot be made: {error}") from error
